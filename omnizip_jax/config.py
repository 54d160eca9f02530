"""The shape of a window: a hashable dataclass, so that it can be static under ``jax.jit``."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """The fixed shape of one window: what every clip and every stream is cut into.

    ``grid_slots`` bounds the tokens of one temporal grid (two frames); pictures are resized to
    fit. 16:9 pictures use all 144 of the default (448 x 252 pixels).
    """

    seconds: int = 2
    audio_slots: int = 50
    grids: int = 2
    grid_slots: int = 144

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"WindowSpec.{field.name} must be a positive integer, got {value!r}"
                )

    @property
    def video_slots(self) -> int:
        return self.grids * self.grid_slots

    @property
    def slots(self) -> int:
        """Tokens that one window can hold: video, then audio."""
        return self.video_slots + self.audio_slots
