"""Surprise: a nearly even sample of the sound, and more of the picture where it is unexpected.

A rule of this package, not of a paper; docs/surprise.md says what each part is worth.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from omnizip_jax.compression.baselines import change
from omnizip_jax.compression.causal import Balance
from omnizip_jax.compression.counts import as_fraction, nearest
from omnizip_jax.compression.novelty import Expected, Novelty, Usual, Weights, relative
from omnizip_jax.compression.per_modality import ModalitySelection, UniformShare, join, top_part
from omnizip_jax.compression.share import RunningShare, most_at_once
from omnizip_jax.types import EncodedWindow, Selection


class Known(struct.PyTreeNode):
    """What a stream remembers to choose tokens.

    Attributes:
        heard: the share of the audio tokens.
        seen: the balance of the video tokens to keep.
        expected: of the next window.
    """

    heard: RunningShare
    seen: Balance
    expected: Expected


@dataclasses.dataclass(frozen=True)
class Surprise(UniformShare):
    """An even sample of the sound, and one of the picture that is denser where it surprises.

    Every token has a weight w by how little was to be expected of it (``Novelty``). With u from the
    golden ratio sequence, the video tokens with the highest ``w / u`` stay. That is priority
    sampling (Duffield, Lund and Thorup, 2007) with numbers that are spread instead of drawn: each
    token stays about in proportion to its weight, evenly over time and place, and windows that
    bring something new keep more. The sound stays by ``w**lean / u``, nearly evenly, for how long
    and how often something sounds can be told from an even sample.

    In a stream the picture's share is balanced to half a window, as OmniZip's is.

    Args:
        rho_audio, rho_video: share of the tokens to discard. With ``keep`` both modalities keep
            that share.
        coverage, sharpness: of ``Novelty``.
        lean: how far the sound leans to what surprises: 0 not at all, 1 as the picture.

    Raises:
        ValueError: not a share; no coverage, or a negative sharpness or lean.
    """

    rho_audio: float = 0.55
    rho_video: float = 0.55
    coverage: float = Novelty.coverage
    sharpness: float = Novelty.sharpness
    lean: float = 0.25
    streams: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.coverage <= 0 or min(self.sharpness, self.lean) < 0:
            raise ValueError(
                "Surprise.coverage must be above 0, and Surprise.sharpness and Surprise.lean at "
                f"least 0; got {self.coverage}, {self.sharpness} and {self.lean}"
            )

    @property
    def shares(self) -> tuple[Fraction, Fraction]:
        return (
            super().shares
            if self.keep is None
            else (as_fraction(self.keep), as_fraction(self.keep))
        )

    @property
    def novelty(self) -> Novelty:
        """What weighs the tokens."""
        return Novelty(self.coverage, self.sharpness)

    def sound(self, windows, count, key):
        initial = self.initial(windows.audio.tokens.shape[-1], key)
        _, weights = self.novelty.sound(initial, windows)
        return sample(weights, windows.audio.token_mask, count, self.lean)

    def picture(self, windows, count, key, audio_keep):
        video, mask = windows.video, windows.video_mask
        initial = self.initial(video.shape[-1], key)
        _, weights = self.novelty.picture(initial, video, mask, change(video, mask))
        return sample(weights, mask, count)

    def initial(self, size: int, key: PRNGKeyArray) -> Usual:
        """What is usual before the first token of a clip."""
        return Usual.initial(size)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        of_audio, of_video = self.shares
        return most_at_once(of_audio, audio_slots) + most_of_picture(of_video, video_slots)

    def begin(self, window: EncodedWindow) -> Known:
        return Known(RunningShare.even(), Balance.even(), Expected.initial(window))

    def step(
        self, state: Known, window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[Known, Selection]:
        clip = jax.tree.map(lambda x: x[None], window)
        audio_mask, video_mask = clip.audio.token_mask, clip.video_mask
        of_audio, of_video = self.shares
        expected, sound, picture = self.novelty.advance(state.expected, window)
        heard, count = state.heard.advance(jnp.sum(audio_mask), of_audio)
        kept_sound = sample(sound, audio_mask, count, self.lean)
        seen, count = balanced(state.seen, picture, video_mask, of_video)
        kept_picture = sample(picture, video_mask, count)
        chosen = join(clip, kept_sound, kept_picture)
        return Known(heard, seen, expected), jax.tree.map(lambda x: x[0], chosen)


def sample(
    weights: Weights, mask: Bool[Array, "W *n"], count: Int[Array, ""], lean: float = 1.0
) -> ModalitySelection:
    """``count`` tokens, about in proportion to ``w**lean``: priority sampling."""
    return top_part(weights.weight**lean / weights.spread, mask, count)


def balanced(
    balance: Balance, weights: Weights, mask: Bool[Array, "1 G P"], share: Fraction
) -> tuple[Balance, Int[Array, ""]]:
    """How many tokens a stream's window keeps: the share, times how unusual the window is.

    What is owed stays within the slack of the balance. No window keeps a quarter of its slots more
    than its share, and none keeps less than a quarter of its share, whatever came before it.
    """
    tokens = jnp.sum(mask)
    balance = balance.advance(tokens, share.numerator * tokens)
    wanted = float(share) * relative(jnp.sum(weights.weight), weights.usual)
    least, most = balance.limits(share.denominator)
    most = jnp.minimum(jnp.minimum(most, tokens), most_of_picture(share, mask.size))
    quarter = share.numerator * tokens // (4 * share.denominator)
    most = jnp.maximum(most, quarter)
    count = jnp.clip(nearest(wanted), jnp.clip(least, quarter, most), most)
    return balance.take(count, share.denominator), count


def most_of_picture(share: Fraction, slots: int) -> int:
    """The most video tokens that a stream keeps of a window."""
    return min(most_at_once(share, slots) + slots // 4, slots)
