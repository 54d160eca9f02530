"""The contract of a method: what chooses among the tokens of a clip, or of a stream.

A method is a frozen dataclass: its fields are its settings, and it is static under ``jax.jit``.
``OmniZipConfig`` is one; ``omnizip_jax.METHODS`` has them all by name; docs/methods.md adds one.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from omnizip_jax.compression.stages import Stage
from omnizip_jax.types import EncodedWindow, Selection

Counts = Int[np.ndarray, " W"]


@dataclasses.dataclass(frozen=True)
class Method:
    """Which media tokens the decoder reads. Subclasses are frozen dataclasses of their settings.

    A method that looks ahead writes ``select`` and ``bound``; one that can stream writes ``begin``,
    ``step`` and ``step_bound`` too.

    Attributes:
        wants: what it needs of the encoders beyond embeddings: "vision" for
            ``EncodedWindow.vision``.
        streams: it can follow a stream.
    """

    wants: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        """Reductions inside a decoder of so many layers; none for most methods."""
        return ()

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """The most tokens that ``select`` keeps of a clip, known on the host beforehand.

        Args:
            audio_counts, video_counts: valid tokens of each window.
        """
        return int(np.sum(audio_counts) + np.sum(video_counts))

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        """Choose among the tokens of a whole clip; pure and of static shape.

        Args:
            windows: leading axis W on every leaf; what the masks leave out is padding, anywhere.
            key: for methods that draw.
        """
        raise NotImplementedError

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """The most tokens that ``step`` keeps of a window with so many slots."""
        return audio_slots + video_slots

    def begin(self, window: EncodedWindow) -> Any:
        """What the method remembers of a stream, before the first window: a pytree of arrays.

        Args:
            window: a window without leading axis, for its shapes and types alone.

        Raises:
            ValueError: the method needs the whole clip.
        """
        raise ValueError(
            f"{type(self).__name__} needs the whole clip and cannot follow a stream: "
            "take a method that can, such as OmniZipConfig()"
        )

    def step(self, state: Any, window: EncodedWindow, key: PRNGKeyArray) -> tuple[Any, Selection]:
        """Choose among the tokens of a stream's next window, without leading axis."""
        raise NotImplementedError

    def follow(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        """What a stream would keep of a clip: ``step`` after ``step``, without looking ahead."""

        def step(carry, window):
            state, key = carry
            key, own = jax.random.split(key)
            state, chosen = self.step(state, window, own)
            return (state, key), chosen

        begin = self.begin(jax.tree.map(lambda x: x[0], windows))
        return jax.lax.scan(step, (begin, key), windows)[1]


def check_types(settings: Any) -> None:
    """Raise ``ValueError`` unless the fields of a dataclass are what their annotations say.

    Numbers must be finite; an integer may stand where a real number is expected, a bool nowhere
    but for itself.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, kinds = getattr(settings, field.name), typing.get_args(hints[field.name])
        kinds = kinds or (hints[field.name],)
        if not any(_is(value, kind) for kind in kinds):
            names = (getattr(kind, "__name__", repr(kind)) for kind in kinds)
            wanted = " or ".join(names).replace("NoneType", "None")
            raise ValueError(
                f"{type(settings).__name__}.{field.name} must be {wanted}, got {value!r}"
            )


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return (
            isinstance(value, int | float | np.floating)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else value == kind


def check_share(name: str, value: float) -> None:
    """Raise ``ValueError`` unless the value is a share."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share between 0 and 1, got {value}")
