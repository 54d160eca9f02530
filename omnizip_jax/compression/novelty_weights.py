"""Token weights by novelty: dissimilarity to the means of the tokens before.

Surprise samples by these weights, and streams with fading memory evict by them under any method.
docs/surprise.md states the effect of each part.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from omnizip_jax.compression.omnizip_video import change, over_windows
from omnizip_jax.compression.similarity import cosines, norms
from omnizip_jax.types import EncodedWindow

RECENT = 64  # windows that a stream's running means cover: about two minutes
GOLDEN = 2654435769  # 2**32 times the fraction of the golden ratio


class RunningMeans(struct.PyTreeNode):
    """Means over the recent tokens of one modality.

    Attributes:
        direction: of the unit tokens.
        surprise, weight: of the tokens, each by the means when it was added.
        tokens: number of tokens that the means cover.
        index: number of tokens so far, modulo 2**32.
    """

    direction: Float[Array, " D"]
    surprise: Float[Array, ""]
    weight: Float[Array, ""]
    tokens: Int[Array, ""]
    index: UInt32[Array, ""]

    @classmethod
    def initial(cls, size: int) -> RunningMeans:
        """The means before the first token."""
        zero = jnp.float32(0)
        return cls(jnp.zeros(size, jnp.float32), zero, zero, jnp.int32(0), jnp.uint32(0))

    def updated(self, old: Array, total: Array, count: Int[Array, ""]) -> Array:
        """The mean ``old`` with ``count`` more values of the sum ``total``."""
        return old + (total - count * old) / jnp.maximum(self.tokens + count, 1)

    def advance(self, mask: Bool[Array, "*n"]) -> RunningMeans:
        """Count the tokens of a window."""
        count = jnp.sum(mask, dtype=jnp.int32)
        recent = jnp.minimum(self.tokens + count, RECENT * mask.size)
        return self.replace(tokens=recent, index=self.index + count.astype(jnp.uint32))


class NoveltyState(struct.PyTreeNode):
    """State of the novelty weights of a stream.

    Attributes:
        audio, video: running means of each modality.
        grid, grid_mask: the last grid with tokens.
    """

    audio: RunningMeans
    video: RunningMeans
    grid: Float[Array, "P D"]
    grid_mask: Bool[Array, " P"]

    @classmethod
    def initial(cls, window: EncodedWindow) -> NoveltyState:
        """The state before the first window; only shapes and types of ``window`` are used."""
        size = window.video.shape[-1]
        return cls(
            audio=RunningMeans.initial(size),
            video=RunningMeans.initial(size),
            grid=jnp.zeros(window.video.shape[1:], window.video.dtype),
            grid_mask=jnp.zeros(window.video_mask.shape[1:], bool),
        )


class SampleWeights(struct.PyTreeNode):
    """Sampling weights of the tokens of one modality.

    Attributes:
        weight: novelty of each token, 0 in padding.
        uniform: u of each token, from ``golden_ratio_sequence``.
        mean: running mean of the weights.
    """

    weight: Float[Array, "W *n"]
    uniform: Float[Array, "W *n"]
    mean: Float[Array, ""]

    @property
    def importance(self) -> Float[Array, "W *n"]:
        """Priority of each token when a stream evicts: ``w / u`` in units of the mean of w."""
        return relative(self.weight / self.uniform, self.mean)


@dataclasses.dataclass(frozen=True)
class Novelty:
    """Weights of tokens by their dissimilarity to the means of clip and grid.

    The surprise s of a video token is the least of ``1 - cos`` to the mean of the clip, to the mean
    of its grid, and to the same position of the grid before. That of an audio token is ``1 - cos``
    to the mean of the clip. The weight is ``w = coverage + (s / mean s)**sharpness``. In a stream
    the means cover the last two minutes.

    Args:
        coverage: weight of a token without surprise.
        sharpness: exponent of the relative surprise.
    """

    coverage: float = 0.1
    sharpness: float = 2.0

    def advance(
        self, state: NoveltyState, window: EncodedWindow
    ) -> tuple[NoveltyState, SampleWeights, SampleWeights]:
        """Weights of a stream's next window, without leading axis.

        Returns:
            The state after it, and the weights of its audio and of its video tokens, with a leading
            axis of one window.
        """
        clip = jax.tree.map(lambda x: x[None], window)
        audio, audio_weights = self.audio_weights(state.audio, clip)
        grids = jnp.concatenate([state.grid[None], window.video])[None]
        masks = jnp.concatenate([state.grid_mask[None], window.video_mask])[None]
        changed = change(grids, masks)[:, 1:]
        video, video_weights = self.video_weights(state.video, clip.video, clip.video_mask, changed)
        exists = jnp.any(masks[0], -1)
        last = exists.size - 1 - jnp.argmax(exists[::-1])
        state = NoveltyState(
            audio=audio.advance(clip.audio.token_mask),
            video=video.advance(clip.video_mask),
            grid=jnp.where(exists.any(), grids[0, last], state.grid),
            grid_mask=jnp.where(exists.any(), masks[0, last], state.grid_mask),
        )
        return state, audio_weights, video_weights

    def audio_weights(
        self, means: RunningMeans, windows: EncodedWindow
    ) -> tuple[RunningMeans, SampleWeights]:
        """Updated means, and weights of the audio tokens of a clip."""
        tokens, mask = windows.audio.tokens, windows.audio.token_mask
        total = jnp.sum(over_windows(direction_sum, tokens, mask), 0)
        direction = means.updated(means.direction, total, jnp.sum(mask))
        surprise = over_windows(partial(distance_to, direction=direction), tokens)
        return self.weights(means.replace(direction=direction), surprise, mask)

    def video_weights(
        self,
        means: RunningMeans,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        changed: Float[Array, "W G P"],
    ) -> tuple[RunningMeans, SampleWeights]:
        """Updated means, and weights of the video tokens of a clip.

        Args:
            changed: from ``change``: ``1 - cos`` to the grid before; more than 2 without one.
        """
        totals = over_windows(jax.vmap(direction_sum), video, mask)
        direction = means.updated(means.direction, jnp.sum(totals, (0, 1)), jnp.sum(mask))

        def distance(grids, totals):
            to_clip = jax.vmap(distance_to, (0, None))(grids, direction)
            return jnp.minimum(to_clip, jax.vmap(distance_to)(grids, totals))

        surprise = jnp.minimum(over_windows(distance, video, totals), changed)
        return self.weights(means.replace(direction=direction), surprise, mask)

    def weights(
        self, means: RunningMeans, surprise: Float[Array, "W *n"], mask: Bool[Array, "W *n"]
    ) -> tuple[RunningMeans, SampleWeights]:
        """Updated means, and weights of tokens by their surprise."""
        count = jnp.sum(mask)
        surprise = jnp.where(mask, jnp.maximum(surprise, 0), 0)
        mean = means.updated(means.surprise, jnp.sum(surprise), count)
        weight = self.coverage + relative(surprise, mean) ** self.sharpness
        weight = jnp.where(mask, weight, 0)
        mean_weight = means.updated(means.weight, jnp.sum(weight), count)
        means = means.replace(surprise=mean, weight=mean_weight)
        uniform = golden_ratio_sequence(mask, means.index)
        return means, SampleWeights(weight, uniform, mean_weight)


def golden_ratio_sequence(mask: Bool[Array, "*n"], index: UInt32[Array, ""]) -> Float[Array, "*n"]:
    """The golden ratio sequence from ``index``, one number in (0, 1) for each valid token.

    The numbers of every stretch are evenly spaced, and so are the positions of the smallest.
    """
    place = index + jnp.cumsum(mask.reshape(-1).astype(jnp.uint32)).reshape(mask.shape)
    # 24 bits of the fraction: float32 holds them exactly.
    return ((place * jnp.uint32(GOLDEN) >> 8).astype(jnp.float32) + 0.5) / 2**24


def relative(x: Float[Array, "*n"], mean: Float[Array, ""]) -> Float[Array, "*n"]:
    """``x`` in units of a mean, which may be 0."""
    return x / jnp.maximum(mean, 1e-6)


def distance_to(tokens: Float[Array, "n D"], direction: Float[Array, " D"]) -> Float[Array, " n"]:
    """``1 - cos`` of tokens to a direction."""
    return 1 - cosines(tokens, direction[None])[:, 0]


def direction_sum(tokens: Float[Array, "n D"], mask: Bool[Array, " n"]) -> Float[Array, " D"]:
    """Sum of the unit tokens."""
    scale = jnp.where(mask, 1 / jnp.maximum(norms(tokens), 1e-9), 0)
    return jnp.einsum(
        "n,nd->d",
        scale,
        jnp.where(mask[:, None], tokens, 0),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=scale.dtype,
    )
