"""How new each token is: its weight by what was usual until it came.

Surprise samples by these weights, and a stream that fades forgets by them, whatever its method.
docs/surprise.md says what each part is worth.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from omnizip_jax.compression.baselines import change
from omnizip_jax.compression.rule import over_windows
from omnizip_jax.compression.similarity import cosines, norms
from omnizip_jax.types import EncodedWindow

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
    def initial(cls, size: int) -> Usual:
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


class Expected(struct.PyTreeNode):
    """What a stream expects of the next window.

    Attributes:
        sound, picture: what is usual.
        grid, grid_mask: the last one that existed.
    """

    sound: Usual
    picture: Usual
    grid: Float[Array, "P D"]
    grid_mask: Bool[Array, " P"]

    @classmethod
    def initial(cls, window: EncodedWindow) -> Expected:
        """Before the first window; of this one, the shapes and types alone count."""
        size = window.video.shape[-1]
        return cls(
            sound=Usual.initial(size),
            picture=Usual.initial(size),
            grid=jnp.zeros(window.video.shape[1:], window.video.dtype),
            grid_mask=jnp.zeros(window.video_mask.shape[1:], bool),
        )


class Weights(struct.PyTreeNode):
    """Of the tokens of a modality, for a sample.

    Attributes:
        weight: how new each is, 0 where there is none.
        spread: u, by which weights become places in a sample (``spread``).
        usual: the mean weight so far.
    """

    weight: Float[Array, "W *n"]
    spread: Float[Array, "W *n"]
    usual: Float[Array, ""]

    @property
    def importance(self) -> Float[Array, "W *n"]:
        """How much each token is worth remembering: ``w / u``, where the mean of w is 1."""
        return relative(self.weight / self.spread, self.usual)


@dataclasses.dataclass(frozen=True)
class Novelty:
    """Weights of tokens by how little was to be expected of them.

    The surprise s of a video token is the least of ``1 - cos`` to the mean of the clip, to the mean
    of its grid, and to the same place of the grid before: what any of them predicts is no surprise.
    That of an audio token is ``1 - cos`` to the mean of the clip. The weight is ``w = coverage +
    (s / mean s)**sharpness``. In a stream the means run over the last two minutes.

    Args:
        coverage: weight of a token that is wholly expected.
        sharpness: the higher, the more a surprise is worth.
    """

    coverage: float = 0.1
    sharpness: float = 2.0

    def advance(
        self, expected: Expected, window: EncodedWindow
    ) -> tuple[Expected, Weights, Weights]:
        """A stream's next window, without leading axis.

        Returns:
            What is expected after it, and the weights of its audio and of its video tokens, with a
            leading axis of one window.
        """
        clip = jax.tree.map(lambda x: x[None], window)
        sound, heard = self.sound(expected.sound, clip)
        changed = change_since(expected.grid, expected.grid_mask, window.video, window.video_mask)
        picture, seen = self.picture(expected.picture, clip.video, clip.video_mask, changed[None])
        exists = jnp.any(window.video_mask, -1)
        last = exists.size - 1 - jnp.argmax(exists[::-1])
        after = Expected(
            sound=sound.after(clip.audio.token_mask),
            picture=picture.after(clip.video_mask),
            grid=jnp.where(exists.any(), window.video[last], expected.grid),
            grid_mask=jnp.where(exists.any(), window.video_mask[last], expected.grid_mask),
        )
        return after, heard, seen

    def sound(self, usual: Usual, windows: EncodedWindow) -> tuple[Usual, Weights]:
        """Weights of the audio tokens, and what is usual with them."""
        tokens, mask = windows.audio.tokens, windows.audio.token_mask
        total = jnp.sum(over_windows(total_direction, tokens, mask), 0)
        direction = usual.mean(usual.direction, total, jnp.sum(mask))
        apart = over_windows(partial(unlike, direction=direction), tokens)
        return self.weigh(usual.replace(direction=direction), apart, mask)

    def picture(
        self,
        usual: Usual,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        changed: Float[Array, "W G P"],
    ) -> tuple[Usual, Weights]:
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
        self, usual: Usual, surprise: Float[Array, "W *n"], mask: Bool[Array, "W *n"]
    ) -> tuple[Usual, Weights]:
        """Weights of tokens by their surprise, and what is usual with them."""
        count = jnp.sum(mask)
        surprise = jnp.where(mask, jnp.maximum(surprise, 0), 0)
        mean = usual.mean(usual.surprise, jnp.sum(surprise), count)
        weight = self.coverage + relative(surprise, mean) ** self.sharpness
        weight = jnp.where(mask, weight, 0)
        usual = usual.replace(
            surprise=mean, weight=usual.mean(usual.weight, jnp.sum(weight), count)
        )
        return usual, Weights(weight, spread(mask, usual.came), usual.weight)


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
