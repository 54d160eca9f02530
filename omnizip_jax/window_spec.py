"""The shape of a window: a hashable dataclass, so that it can be static under ``jax.jit``."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """The fixed shape of the windows of a clip or a stream.

    ``grid_slots`` bounds the tokens of one temporal grid (two frames); frames are resized to fit.
    16:9 frames use all 144 of the default (448 x 252 pixels). The shape belongs to a
    checkpoint: ``params.config.spec``.

    Args:
        seconds: length of a window.
        audio_slots: audio tokens in a window.
        grids, grid_slots: grids in a window, and tokens in a grid.
        patch: pixels along a patch's side.
        merge: patches along a token's side.
        temporal_patch: frames in a grid.
        mel_bins: bands of the log-mel spectrogram.
        min_mel_frames: mel frames that make an audio token; fewer at the end of a clip make none.
        positions_per_second: position ids in a second.

    Raises:
        ValueError: a field that is not a positive integer.
    """

    seconds: int = 2
    audio_slots: int = 50
    grids: int = 2
    grid_slots: int = 144
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    mel_bins: int = 128
    min_mel_frames: int = 3
    positions_per_second: int = 25

    def __post_init__(self):
        check_positive(self, *(field.name for field in dataclasses.fields(self)))

    @property
    def video_slots(self) -> int:
        return self.grids * self.grid_slots

    @property
    def slots(self) -> int:
        """Tokens that one window can hold: video, then audio."""
        return self.video_slots + self.audio_slots

    @property
    def frames(self) -> int:
        """Frames in a window."""
        return self.grids * self.temporal_patch

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Patches of a grid, and values of a patch: channel, frame, row, column."""
        return self.grid_slots * self.merge**2, 3 * self.temporal_patch * self.patch**2

    @property
    def mel_frames(self) -> int:
        """Mel frames in a window, 100 a second."""
        return 100 * self.seconds

    @property
    def positions(self) -> int:
        """Position ids in a window."""
        return self.positions_per_second * self.seconds


def check_positive(settings: Any, *names: str) -> None:
    """Raise ``ValueError`` unless the named fields of a dataclass are positive integers."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            field = f"{type(settings).__name__}.{name}"
            raise ValueError(f"{field} must be a positive integer, got {value!r}")


def check_flags(**flags: Any) -> None:
    """Raise ``ValueError`` for one that is neither True nor False, by its name."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def check_spec(spec: Any) -> None:
    """Raise ``ValueError`` unless it is the shape of a window."""
    if not isinstance(spec, WindowSpec):
        raise ValueError(f"spec must be a WindowSpec, got {spec!r}")
