"""Methods that know what none can know: about what could be reached at a share of the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from omnizip_jax.compression.counts import as_fraction, round_share
from omnizip_jax.compression.method import Budget, Counts, Method, check_share
from omnizip_jax.compression.novelty import RunningMeans
from omnizip_jax.compression.surprise import Surprise
from omnizip_jax.inference.sequence import interleave
from omnizip_jax.testbed.synthetic_clips import SPEC, SyntheticClip
from omnizip_jax.types import EncodedWindow, Selection


class KnownWindow(EncodedWindow):
    """A window of a clip whose plot is known.

    Attributes:
        heard, seen: the tokens in which a thing sounds, or shows.
    """

    heard: Bool[Array, "*W A"] | None = None
    seen: Bool[Array, "*W G P"] | None = None


def known(windows: EncodedWindow, clips: Sequence[SyntheticClip]) -> KnownWindow:
    """Encoded clips [B, W, ...] with what is told about them."""
    heard = np.stack([clip.audio_objects.reshape(-1, SPEC.audio_slots) >= 0 for clip in clips])
    seen = np.stack(
        [
            clip.video_objects.reshape(-1, SPEC.grids, clip.video_objects.shape[1]) >= 0
            for clip in clips
        ]
    )
    fields = {field.name: getattr(windows, field.name) for field in dataclasses.fields(windows)}
    return KnownWindow(**fields, heard=jnp.asarray(heard), seen=jnp.asarray(seen))


@dataclasses.dataclass(frozen=True)
class Oracle(Method):
    """The tokens of things, as many as there is room for, and then the others.

    Of both as many as are kept lie evenly in the order of the clip. It reads ``KnownWindow``.

    This is no strict upper bound: it does not know the question, takes every part of a thing for
    as good as every other, and what is needed to tell that nothing happened belongs to no thing.

    Raises:
        ValueError: without ``keep``.
    """

    keep: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.keep is None:
            raise ValueError("Oracle needs a share of the tokens to keep, as in Oracle(keep=0.25)")
        check_share("Oracle.keep", self.keep)

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """The share of all tokens; its division between the modalities depends on the clip."""
        assert self.keep is not None
        audio, video = np.sum(audio_counts), np.sum(video_counts)
        total = round_share(as_fraction(self.keep), audio + video)
        return Budget(audio, video, total).as_ints()

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        if not isinstance(windows, KnownWindow):
            raise ValueError("Oracle chooses among windows of which the plot is known: KnownWindow")
        assert windows.heard is not None and windows.seen is not None
        audio, video = windows.audio.token_mask, windows.video_mask
        exists = interleave(video, audio)
        objects = interleave(windows.seen, windows.heard) & exists
        first = jnp.minimum(budget.total, jnp.sum(objects))
        keep = spread(objects, first) | spread(exists & ~objects, budget.total - first)
        rows = keep.reshape(len(audio), -1)
        video_objects = video[0].size
        return Selection.of(
            audio, video, rows[:, video_objects:], rows[:, :video_objects].reshape(video.shape)
        )


@dataclasses.dataclass(frozen=True)
class BestSample(Surprise):
    """Surprise with samples that begin anywhere; of some, the one with most right answers counts.

    All of its samples are as even and as dense as Surprise's own. So what it reaches, with the
    answers known, can be reached by choosing tokens, whatever the question; it need not be the
    most.

    Args:
        samples: how many are tried, with as many seeds.
    """

    samples: int = 16

    def initial_means(self, size: int, key: PRNGKeyArray) -> RunningMeans:
        return RunningMeans.initial(size).replace(index=jax.random.bits(key))


def spread(mask: Bool[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """``count`` of the tokens in the mask, evenly."""
    place, among = jnp.cumsum(mask), jnp.maximum(jnp.sum(mask), 1)
    return mask & (place * count // among > (place - 1) * count // among)
