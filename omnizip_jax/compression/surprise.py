"""Surprise: a nearly even sample of the sound, and more of the picture where it is unexpected.

A rule of this package, not of a paper; docs/surprise.md says what each part is worth.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from omnizip_jax.compression.baselines import change
from omnizip_jax.compression.causal import Balance
from omnizip_jax.compression.counts import exact, nearest
from omnizip_jax.compression.parts import EvenShare, Part, join, top_part
from omnizip_jax.compression.rule import over_windows
from omnizip_jax.compression.share import RunningShare, most_at_once
from omnizip_jax.compression.similarity import cosines, norms
from omnizip_jax.types import EncodedWindow, Selection

RECENT = 64  # windows over which a stream forms its idea of the usual: about two minutes
GOLDEN = 2654435769  # 2**32 times the fraction of the golden ratio


class Usual(struct.PyTreeNode):
    """What is expected of a modality: means over the tokens so far, lately.

    Attributes:
        direction: of the unit tokens.
        surprise, weight: of the tokens, each by what was usual when it came.
        tokens: how many the means count for.
        came: how many have come, modulo 2**32.
    """

    direction: Float[Array, " D"]
    surprise: Float[Array, ""]
    weight: Float[Array, ""]
    tokens: Int[Array, ""]
    came: UInt32[Array, ""]

    @classmethod
    def nothing(cls, size: int) -> Usual:
        """Before the first token."""
        zero = jnp.float32(0)
        return cls(jnp.zeros(size, jnp.float32), zero, zero, jnp.int32(0), jnp.uint32(0))

    def mean(self, old: Array, total: Array, count: Int[Array, ""]) -> Array:
        """A mean that goes on: ``count`` more values have come, ``total`` in all."""
        return old + (total - count * old) / jnp.maximum(self.tokens + count, 1)

    def after(self, mask: Bool[Array, "*n"]) -> Usual:
        """Once the tokens of a window have come."""
        count = jnp.sum(mask)
        recent = jnp.minimum(self.tokens + count, RECENT * mask.size)
        return self.replace(tokens=recent, came=self.came + count.astype(jnp.uint32))


class Known(struct.PyTreeNode):
    """What a stream remembers to choose tokens.

    Attributes:
        heard: the share of the audio tokens.
        seen: the balance of the video tokens to keep.
        sound, picture: what is usual.
        grid, grid_mask: the last one that existed.
    """

    heard: RunningShare
    seen: Balance
    sound: Usual
    picture: Usual
    grid: Float[Array, "P D"]
    grid_mask: Bool[Array, " P"]


@dataclasses.dataclass(frozen=True)
class Surprise(EvenShare):
    """An even sample of the sound, and one of the picture that is denser where it surprises.

    The surprise s of a video token is the least of ``1 - cos`` to the mean of the clip, to the mean
    of its grid, and to the same place of the grid before: what any of them predicts is no surprise.
    Its weight is ``w = coverage + (s / mean s)**sharpness``. With u from the golden ratio sequence,
    the tokens with the highest ``w / u`` stay. That is priority sampling (Duffield, Lund and
    Thorup, 2007) with numbers that are spread instead of drawn: each token stays about in
    proportion to its weight, evenly over time and place, and windows that bring something new keep
    more. The sound stays by ``w**lean / u``, nearly evenly, for how long and how often something
    sounds can be told from an even sample.

    In a stream the means run over the last two minutes, and the picture's share is balanced to
    half a window, as OmniZip's is. When a stream forgets, ``w / u`` says how much a token is worth
    remembering, of sound and picture alike.

    Args:
        rho_audio, rho_video: share of the tokens to discard. With ``keep`` both modalities keep
            that share.
        coverage: weight of a token that is wholly expected.
        sharpness: the higher, the more a surprise is worth.
        lean: how far the sound leans to what surprises: 0 not at all, 1 as the picture.

    Raises:
        ValueError: not a share; no coverage, or a negative sharpness or lean.
    """

    rho_audio: float = 0.55
    rho_video: float = 0.55
    coverage: float = 0.1
    sharpness: float = 2.0
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
        return super().shares if self.keep is None else (exact(self.keep), exact(self.keep))

    def sound(self, windows, count, key):
        audio = windows.audio
        usual, weight = self.weigh_sound(self.nothing(audio.tokens.shape[-1], key), windows)
        return sample(weight, audio.token_mask, usual, count, self.lean)

    def picture(self, windows, count, key, audio_keep):
        video, mask = windows.video, windows.video_mask
        nothing = self.nothing(video.shape[-1], key)
        usual, weight = self.weigh_picture(nothing, video, mask, change(video, mask))
        return sample(weight, mask, usual, count)

    def nothing(self, size: int, key: PRNGKeyArray) -> Usual:
        """What is usual before the first token of a clip."""
        return Usual.nothing(size)

    def weigh_sound(
        self, usual: Usual, windows: EncodedWindow
    ) -> tuple[Usual, Float[Array, "W A"]]:
        """Weights of the audio tokens, and what is usual with them."""
        tokens, mask = windows.audio.tokens, windows.audio.token_mask
        total = jnp.sum(over_windows(total_direction, tokens, mask), 0)
        direction = usual.mean(usual.direction, total, jnp.sum(mask))
        apart = over_windows(partial(unlike, direction=direction), tokens)
        return self.weigh(usual.replace(direction=direction), apart, mask)

    def weigh_picture(
        self,
        usual: Usual,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        changed: Float[Array, "W G P"],
    ) -> tuple[Usual, Float[Array, "W G P"]]:
        """Weights of the video tokens, and what is usual with them.

        Args:
            changed: ``1 - cos`` to the same place of the grid before; more than 2 without one.
        """
        totals = over_windows(jax.vmap(total_direction), video, mask)
        direction = usual.mean(usual.direction, jnp.sum(totals, (0, 1)), jnp.sum(mask))

        def apart(grids, totals):
            of_clip = jax.vmap(unlike, (0, None))(grids, direction)
            return jnp.minimum(of_clip, jax.vmap(unlike)(grids, totals))

        least = jnp.minimum(over_windows(apart, video, totals), changed)
        return self.weigh(usual.replace(direction=direction), least, mask)

    def weigh(
        self, usual: Usual, surprise: Float[Array, "*n"], mask: Bool[Array, "*n"]
    ) -> tuple[Usual, Float[Array, "*n"]]:
        """Weights of tokens by their surprise, and what is usual with them."""
        count = jnp.sum(mask)
        surprise = jnp.where(mask, jnp.maximum(surprise, 0), 0)
        mean = usual.mean(usual.surprise, jnp.sum(surprise), count)
        weight = self.coverage + relative(surprise, mean) ** self.sharpness
        weight = jnp.where(mask, weight, 0)
        return usual.replace(
            surprise=mean, weight=usual.mean(usual.weight, jnp.sum(weight), count)
        ), weight

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        of_audio, of_video = self.shares
        return most_at_once(of_audio, audio_slots) + most_of_picture(of_video, video_slots)

    def begin(self, window: EncodedWindow) -> Known:
        size = window.video.shape[-1]
        return Known(
            heard=RunningShare.even(),
            seen=Balance.even(),
            sound=Usual.nothing(size),
            picture=Usual.nothing(size),
            grid=jnp.zeros(window.video.shape[1:], window.video.dtype),
            grid_mask=jnp.zeros(window.video_mask.shape[1:], bool),
        )

    def step(
        self, state: Known, window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[Known, Selection]:
        clip = jax.tree.map(lambda x: x[None], window)
        audio_mask, video_mask = clip.audio.token_mask, clip.video_mask
        of_audio, of_video = self.shares

        sound, weight = self.weigh_sound(state.sound, clip)
        heard, count = state.heard.come(jnp.sum(audio_mask), of_audio)
        kept_sound = sample(weight, audio_mask, sound, count, self.lean)

        changed = change_since(state.grid, state.grid_mask, window.video, window.video_mask)
        picture, weight = self.weigh_picture(state.picture, clip.video, video_mask, changed[None])
        seen, count = balanced(state.seen, weight, picture, video_mask, of_video)
        kept_picture = sample(weight, video_mask, picture, count)

        exists = jnp.any(window.video_mask, -1)
        last = exists.size - 1 - jnp.argmax(exists[::-1])
        known = Known(
            heard=heard,
            seen=seen,
            sound=sound.after(audio_mask),
            picture=picture.after(video_mask),
            grid=jnp.where(exists.any(), window.video[last], state.grid),
            grid_mask=jnp.where(exists.any(), window.video_mask[last], state.grid_mask),
        )
        chosen = join(clip, kept_sound, kept_picture)
        return known, jax.tree.map(lambda x: x[0], chosen)


def spread(mask: Bool[Array, "*n"], came: UInt32[Array, ""]) -> Float[Array, "*n"]:
    """The golden ratio sequence, one number in (0, 1) for each token that exists.

    Any stretch of it is spread evenly, and so are the places of its smallest numbers.

    Args:
        came: how many numbers were taken before.
    """
    place = came + jnp.cumsum(mask.reshape(-1).astype(jnp.uint32)).reshape(mask.shape)
    # 24 bits of the fraction: what float32 holds exactly.
    return ((place * jnp.uint32(GOLDEN) >> 8).astype(jnp.float32) + 0.5) / 2**24


def relative(x: Float[Array, "*n"], usual: Float[Array, ""]) -> Float[Array, "*n"]:
    """As a multiple of what is usual."""
    return x / jnp.maximum(usual, 1e-6)


def sample(
    weight: Float[Array, "W *n"],
    mask: Bool[Array, "W *n"],
    usual: Usual,
    count: Int[Array, ""],
    lean: float = 1.0,
) -> Part:
    """``count`` tokens, about in proportion to ``weight**lean``: priority sampling."""
    u = spread(mask, usual.came)
    part = top_part(weight**lean / u, mask, count)
    return part._replace(worth=relative(weight / u, usual.weight))


def balanced(
    balance: Balance,
    weight: Float[Array, "1 G P"],
    usual: Usual,
    mask: Bool[Array, "1 G P"],
    share: Fraction,
) -> tuple[Balance, Int[Array, ""]]:
    """How many tokens a stream's window keeps: the share, times how unusual the window is.

    What is owed stays within the slack of the balance. No window keeps a quarter of its slots more
    than its share, and none keeps less than a quarter of its share, whatever came before it.
    """
    tokens = jnp.sum(mask)
    balance = balance.come(tokens, share.numerator * tokens)
    wanted = float(share) * relative(jnp.sum(weight), usual.weight)
    least, most = balance.limits(share.denominator)
    most = jnp.minimum(jnp.minimum(most, tokens), most_of_picture(share, mask.size))
    quarter = share.numerator * tokens // (4 * share.denominator)
    most = jnp.maximum(most, quarter)
    count = jnp.clip(nearest(wanted), jnp.clip(least, quarter, most), most)
    return balance.take(count, share.denominator), count


def most_of_picture(share: Fraction, slots: int) -> int:
    """The most video tokens that a stream keeps of a window."""
    return min(most_at_once(share, slots) + slots // 4, slots)


def change_since(
    last: Float[Array, "P D"],
    last_mask: Bool[Array, " P"],
    video: Float[Array, "G P D"],
    mask: Bool[Array, "G P"],
) -> Float[Array, "G P"]:
    """``change`` of a window's grids, where one came before it."""
    grids = jnp.concatenate([last[None], video])[None]
    return change(grids, jnp.concatenate([last_mask[None], mask])[None])[0, 1:]


def unlike(tokens: Float[Array, "n D"], direction: Float[Array, " D"]) -> Float[Array, " n"]:
    """``1 - cos`` of tokens to a direction."""
    return 1 - cosines(tokens, direction[None])[:, 0]


def total_direction(tokens: Float[Array, "n D"], mask: Bool[Array, " n"]) -> Float[Array, " D"]:
    """Sum of the unit tokens."""
    scale = jnp.where(mask, 1 / jnp.maximum(norms(tokens), 1e-9), 0)
    return jnp.einsum(
        "n,nd->d",
        scale,
        jnp.where(mask[:, None], tokens, 0),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=scale.dtype,
    )
