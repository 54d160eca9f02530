"""Reference methods of the accuracy measurement: oracle, best of N samples, streaming selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from omnizip_jax.compression.counts import as_fraction, proportion, round_share
from omnizip_jax.compression.method import Budget, Counts, Method, check_shares
from omnizip_jax.compression.novelty_weights import RunningMeans
from omnizip_jax.compression.surprise import Surprise
from omnizip_jax.inference.sequence import slots_of
from omnizip_jax.testbed.synthetic_clips import SPEC, SyntheticClip
from omnizip_jax.types import EncodedWindow, Selection


class AnnotatedWindow(EncodedWindow):
    """An encoded window with the tokens of its objects.

    Attributes:
        audio_objects, video_objects: whether an object sounds or is visible in each token.
    """

    audio_objects: Bool[Array, "*W A"] | None = None
    video_objects: Bool[Array, "*W G P"] | None = None


def with_objects(windows: EncodedWindow, clips: Sequence[SyntheticClip]) -> AnnotatedWindow:
    """Encoded clips [B, W, ...] with the tokens of their objects."""
    audio = np.stack([clip.audio_objects.reshape(-1, SPEC.audio_slots) >= 0 for clip in clips])
    video = np.stack(
        [
            clip.video_objects.reshape(-1, SPEC.grids, clip.video_objects.shape[1]) >= 0
            for clip in clips
        ]
    )
    fields = {field.name: getattr(windows, field.name) for field in dataclasses.fields(windows)}
    return AnnotatedWindow(
        **fields, audio_objects=jnp.asarray(audio), video_objects=jnp.asarray(video)
    )


@dataclasses.dataclass(frozen=True)
class Oracle(Method):
    """Keeps tokens of objects first, then others, each evenly in the order of the clip.

    It needs ``AnnotatedWindow`` and is no strict upper bound: it does not know the question, treats
    all tokens of an object alike, and ignores tokens that show that nothing happened.

    Raises:
        ValueError: without ``keep``.
    """

    keep: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.keep is None:
            raise ValueError("Oracle needs a share of the tokens to keep, as in Oracle(keep=0.25)")
        check_shares(self, "keep")

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """The share of all tokens; its division between the modalities depends on the clip."""
        assert self.keep is not None
        audio, video = np.sum(audio_counts), np.sum(video_counts)
        total = round_share(as_fraction(self.keep), audio + video)
        return Budget(audio, video, total).as_ints()

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        if not isinstance(windows, AnnotatedWindow):
            raise ValueError("Oracle needs windows with annotated objects: pass AnnotatedWindow")
        assert windows.audio_objects is not None and windows.video_objects is not None
        audio, video = windows.audio.token_mask, windows.video_mask
        exists = slots_of(video, audio)
        objects = slots_of(windows.video_objects, windows.audio_objects) & exists
        first = jnp.minimum(budget.total, jnp.sum(objects))
        keep = spread(objects, first) | spread(exists & ~objects, budget.total - first)
        rows = keep.reshape(len(audio), -1)
        count = video[0].size
        return Selection.of(audio, video, rows[:, count:], rows[:, :count].reshape(video.shape))


@dataclasses.dataclass(frozen=True)
class BestSample(Surprise):
    """Surprise with random starts; the sample with most right answers counts.

    All samples are as uniform and dense as that of Surprise, so this accuracy can be reached by a
    selection that does not depend on the question.

    Args:
        samples: number of samples, each with its own seed.
    """

    samples: int = 16

    def initial_means(self, size: int, key: PRNGKeyArray) -> RunningMeans:
        return RunningMeans.initial(size).replace(index=jax.random.bits(key))


@dataclasses.dataclass(frozen=True)
class Streamed(Method):
    """Streaming selection of a method, applied to a whole clip."""

    method: Method

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.wants

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """Upper limit: every window keeps as many tokens as one window may."""
        windows = zip(audio_counts.tolist(), video_counts.tolist(), strict=True)
        total = sum(min(self.method.step_bound(a, v), a + v) for a, v in windows)
        return Budget(np.sum(audio_counts), np.sum(video_counts), total).as_ints()

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        return self.method.follow(windows, key)


def spread(mask: Bool[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """Select ``count`` tokens of the mask at equal distances."""
    place, among = jnp.cumsum(mask), jnp.maximum(jnp.sum(mask), 1)
    until, before = (proportion(n, count, among)[0] for n in (place, place - 1))
    return mask & (until > before)
