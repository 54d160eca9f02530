"""Surprise: a nearly uniform sample of the audio, and a denser sample of unexpected video.

A rule of this package, not of a paper; docs/surprise.md states the effect of each part.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from omnizip_jax.compression.counts import (
    STREAM_DENOMINATOR,
    nearest,
    running_share_bound,
)
from omnizip_jax.compression.method import Count
from omnizip_jax.compression.novelty_weights import (
    Novelty,
    NoveltyState,
    RunningMeans,
    SampleWeights,
    relative,
)
from omnizip_jax.compression.omnizip_streaming import Balance
from omnizip_jax.compression.omnizip_video import change
from omnizip_jax.compression.per_modality import ModalitySelection, Rates, join, select_top


@dataclasses.dataclass(frozen=True)
class Surprise(Rates):
    """A nearly uniform sample of the audio, and a video sample that is denser where it surprises.

    Every token has a weight w by its novelty (``Novelty``). With u from the golden ratio sequence,
    the video tokens with the highest ``w / u`` are kept. That is priority sampling (Duffield, Lund
    and Thorup, 2007) with evenly spaced instead of random numbers: each token is kept about in
    proportion to its weight, evenly over time and space, and windows with new content keep more.
    Audio tokens are ranked by ``w**lean / u``, nearly uniformly, because a uniform sample preserves
    how long and how often something sounds.

    In a stream the video share is balanced to half a window, as OmniZip's is.

    Args:
        rho_audio, rho_video: share of the tokens to discard.
        coverage, sharpness: of ``Novelty``.
        lean: exponent of the audio weights: 0 is a uniform sample, 1 the ranking of the video.

    Raises:
        ValueError: not a share; no coverage, or a negative sharpness or lean.
    """

    rho_audio: float = 0.55
    rho_video: float = 0.55
    coverage: float = Novelty.coverage
    sharpness: float = Novelty.sharpness
    lean: float = 0.25
    split: str = dataclasses.field(default="uniform", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.coverage <= 0 or min(self.sharpness, self.lean) < 0:
            raise ValueError(
                "Surprise.coverage must be above 0, and Surprise.sharpness and Surprise.lean at "
                f"least 0; got {self.coverage}, {self.sharpness} and {self.lean}"
            )

    @property
    def streams(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Streams hold one share of each modality."""
        return self.keep is None or self.split == "uniform"

    @property
    def novelty(self) -> Novelty:
        """The weights of the tokens."""
        return Novelty(self.coverage, self.sharpness)

    def select_audio(self, windows, count, key):
        initial = self.initial_means(windows.audio.tokens.shape[-1], key)
        _, weights = self.novelty.audio_weights(initial, windows)
        return sample(weights, windows.audio.token_mask, count, self.lean)

    def select_video(self, windows, count, key, audio_keep):
        video, mask = windows.video, windows.video_mask
        initial = self.initial_means(video.shape[-1], key)
        _, weights = self.novelty.video_weights(initial, video, mask, change(video, mask))
        return sample(weights, mask, count)

    def initial_means(self, size: int, key: PRNGKeyArray) -> RunningMeans:
        """Means before the first token of a clip."""
        return RunningMeans.initial(size)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        audio, video = self.shares
        return running_share_bound(audio, audio_slots) + video_bound(video, video_slots)

    def begin(self, window):
        """Running share of the audio tokens, balance of the video tokens, state of the weights."""
        share, _ = super().begin(window)
        return share, Balance.initial(), NoveltyState.initial(window)

    def step(self, state, window, key):
        share, balance, novelty = state
        clip = jax.tree.map(lambda x: x[None], window)
        audio_mask, video_mask = clip.audio.token_mask, clip.video_mask
        audio_share, video_share = self.shares
        novelty, audio_weights, video_weights = self.novelty.advance(novelty, window)
        share, count = share.advance(jnp.sum(audio_mask), audio_share)
        audio_selection = sample(audio_weights, audio_mask, count, self.lean)
        balance, count = balanced_count(balance, video_weights, video_mask, video_share)
        selection = join(clip, audio_selection, sample(video_weights, video_mask, count))
        return (share, balance, novelty), jax.tree.map(lambda x: x[0], selection)


def sample(
    weights: SampleWeights, mask: Bool[Array, "W *n"], count: Count, lean: float = 1.0
) -> ModalitySelection:
    """Priority sample of ``count`` tokens, about in proportion to ``w**lean``."""
    return select_top(weights.weight**lean / weights.uniform, mask, count)


def balanced_count(
    balance: Balance, weights: SampleWeights, mask: Bool[Array, "1 G P"], share: Fraction
) -> tuple[Balance, Int[Array, ""]]:
    """Updated balance, and the number of video tokens to keep of a stream's window.

    The share times the window's mean novelty, limited by the slack of the balance. A window keeps
    at most a quarter of its slots more than its share, and at least a quarter of its share.
    """
    tokens, share = jnp.sum(mask), share.limit_denominator(STREAM_DENOMINATOR)
    balance = balance.advance(tokens, share.numerator * tokens)
    target = float(share) * relative(jnp.sum(weights.weight), weights.mean)
    least, most = balance.limits(share.denominator)
    most = jnp.minimum(jnp.minimum(most, tokens), video_bound(share, mask.size))
    quarter = share.numerator * tokens // (4 * share.denominator)
    most = jnp.maximum(most, quarter)
    count = jnp.clip(nearest(target), jnp.clip(least, quarter, most), most)
    return balance.subtract(count, share.denominator), count


def video_bound(share: Fraction, slots: int) -> int:
    """The most video tokens that a stream keeps of a window."""
    return min(running_share_bound(share, slots) + slots // 4, slots)
