"""The contract of a compression method, which selects tokens of a clip or of a stream.

A method is a frozen dataclass: its fields are its settings, and it is static under ``jax.jit``.
``OmniZipConfig`` is one; ``omnizip_jax.METHODS`` lists all by name; docs/methods.md adds one.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from omnizip_jax.compression.decoder_stages import Stage
from omnizip_jax.types import EncodedWindow, Selection

Counts = Int[np.ndarray, " W"]
Count = Any  # an int on the host, an int32 scalar under jit


class Budget(NamedTuple):
    """Numbers of tokens to keep: decided on the host for a clip, traced data under ``jax.jit``.

    Attributes:
        audio, video: tokens of each modality.
        total: the most tokens that ``select`` keeps; caches are sized by it.
        anchors: those of the audio tokens that other audio tokens are merged into.
    """

    audio: Count
    video: Count
    total: Count
    anchors: Count = 0

    @classmethod
    def of(cls, audio: Count, video: Count) -> Budget:
        """The budget of a method that keeps exactly these numbers."""
        return cls(audio, video, audio + video)

    def as_ints(self) -> Budget:
        """The budget in Python integers, so that one program serves every clip."""
        return Budget(*map(int, self))


@dataclasses.dataclass(frozen=True)
class Method:
    """Selection of the media tokens that the decoder reads.

    Subclasses are frozen dataclasses of their settings. All write ``plan`` and ``select``; those
    that can follow a stream also ``begin``, ``step`` and ``step_bound``.

    Attributes:
        wants: encoder outputs that are needed beyond embeddings: "vision" for
            ``EncodedWindow.vision``.
        streams: whether the method can follow a stream.
    """

    wants: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        """Reductions inside a decoder with ``layers`` layers; none for most methods."""
        return ()

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """Decide on the host how many tokens ``select`` keeps of a clip; by default all.

        Args:
            audio_counts, video_counts: valid tokens of each window.
        """
        return Budget.of(np.sum(audio_counts), np.sum(video_counts)).as_ints()

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        """Select tokens of a whole clip; pure and of static shape.

        Args:
            windows: leading axis W on every leaf; slots outside the masks are padding, anywhere.
            budget: from ``plan``; at most ``budget.total`` tokens are kept.
            key: for methods that sample.
        """
        raise NotImplementedError

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """Static bound on the tokens that ``step`` keeps of a window with these slots."""
        return audio_slots + video_slots

    def begin(self, window: EncodedWindow) -> Any:
        """State of the method before the first window of a stream: a pytree of arrays.

        Args:
            window: a window without leading axis; only its shapes and types are used.

        Raises:
            ValueError: the method needs the whole clip.
        """
        raise ValueError(
            f"{type(self).__name__} needs the whole clip and cannot follow a stream: "
            "take a method that can, such as OmniZipConfig()"
        )

    def step(self, state: Any, window: EncodedWindow, key: PRNGKeyArray) -> tuple[Any, Selection]:
        """Select tokens of a stream's next window, without leading axis."""
        raise NotImplementedError

    def follow(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        """Select tokens of a clip window by window, as in a stream."""

        def step(carry, window):
            state, key = carry
            key, own = jax.random.split(key)
            state, selection = self.step(state, window, own)
            return (state, key), selection

        begin = self.begin(jax.tree.map(lambda x: x[0], windows))
        return jax.lax.scan(step, (begin, key), windows)[1]


def check_types(settings: Any) -> None:
    """Raise ``ValueError`` unless the fields of a dataclass have the annotated types.

    Numbers must be finite; an integer is accepted as a real number, a bool only as a bool.
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


def check_shares(settings: Any, *names: str) -> None:
    """Raise ``ValueError`` unless the named fields are between 0 and 1, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0.0 <= value <= 1.0:
            field = f"{type(settings).__name__}.{name}"
            raise ValueError(f"{field} is a share between 0 and 1, got {value}")
