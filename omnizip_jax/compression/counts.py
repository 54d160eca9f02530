"""Exact token counts: shares of counts, counts over groups, running shares, and ranks.

``share * count`` in float32 may land on the wrong side of an integer or of a half, so shares are
fractions and their products integers, on the host (numpy) as on the device (jax.numpy), where
``proportion`` keeps them inside int32.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

# The paper's two settings of (rho_audio, rho_video) are (0.3, 0.6) and (0.4, 0.7), section 4.1.
PAPER_GAP = 0.3
STREAM_DENOMINATOR = 10**4  # of shares in streams: int32 sums are exact for 100,000 tokens a window


def as_fraction(share: float, denominator: int = 10**6) -> Fraction:
    """The decimal that a float stands for: 0.3 is 3/10, not the binary fraction nearest to it.

    Args:
        denominator: the largest one.
    """
    return Fraction(share).limit_denominator(denominator)


def floor_share(share: Fraction, counts: Any) -> Any:
    """``floor(share * counts)`` of non-negative integers, numpy or jax.numpy."""
    return _of_share(share, counts)[0]


def ceil_share(share: Fraction, counts: Any) -> Any:
    """``ceil(share * counts)`` of non-negative integers, numpy or jax.numpy."""
    down, rest, _ = _of_share(share, counts)
    return down + (rest > 0)


def round_share(share: Fraction, counts: Any) -> Any:
    """``share * counts`` rounded to the nearest integer, halves to the even one."""
    down, rest, unit = _of_share(share, counts)
    return down + ((2 * rest > unit) | ((2 * rest == unit) & (down % 2 == 1)))


def _of_share(share: Fraction, counts: Any) -> tuple[Any, Any, int]:
    """Quotient, remainder and denominator of ``share * counts``."""
    share = share.limit_denominator(10**6)
    return *proportion(share.numerator, counts, share.denominator), share.denominator


def proportion(part: Any, count: Any, whole: Any) -> tuple[Any, Any]:
    """Quotient and remainder of ``part * count / whole``, non-negative integers.

    Exact in int32 for any ``count`` if ``part + whole`` is at most 2**23: the product is never
    formed, because ``count`` is taken digit by digit, as in long division.
    """
    down = rest = 0
    for shift in (24, 16, 8, 0):
        rest = 256 * rest + (count >> shift) % 256 * part
        down, rest = 256 * down + rest // whole, rest % whole
    return down, rest


def nearest(x: Any) -> Any:
    """The nearest integer; to a thousandth first, so that halves are halves in every program."""
    xp = namespace(x)
    return xp.round(xp.round(x * 1024) / 1024).astype(xp.int32)


def apportion(total: Int[Array, ""] | int, sizes: Int[Array, " n"]) -> Int[Array, " n"]:
    """``total`` of ``sum(sizes)`` tokens over groups in proportion to their sizes.

    The largest remainders are rounded up; of equal ones the earlier.
    """
    share, rest = proportion(sizes, total, jnp.maximum(jnp.sum(sizes), 1))
    return share + top_mask(rest.astype(jnp.float32), share < sizes, total - jnp.sum(share))


def salience_order(scores: Float[Array, " n"], valid: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Rank of every score, 0 for the highest; ties go to the lower index, padding comes last."""
    lowest = jnp.finfo(scores.dtype).min  # a valid score of -inf still ranks above padding
    ranked = jnp.where(valid, jnp.maximum(scores, lowest), -jnp.inf)
    order = jnp.argsort(ranked, descending=True, stable=True).astype(jnp.int32)
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))


def top_mask(
    scores: Array, valid: Bool[Array, "*n"], count: Num[Array, ""] | int
) -> Bool[Array, "*n"]:
    """The ``count`` highest scores among the valid ones; of equal scores the earlier wins."""
    order = salience_order(scores.reshape(-1), valid.reshape(-1))
    return (order < count).reshape(valid.shape) & valid


def salient_share(
    total: Any, audio: Any, video: Any, anchors: Any = 0, gap: float = PAPER_GAP
) -> Any:
    """``1 - rho_audio`` on the line ``rho_video = rho_audio + gap``, anchors in addition.

    Solves ``(1 - rho_audio) audio + anchors + (1 - rho_audio - gap) video = total``, numbers or
    arrays; may lie outside 0 to 1.
    """
    tokens = audio + video
    return (total - anchors + gap * video) / (tokens + (tokens == 0))


class RunningShare(struct.PyTreeNode):
    """A share of all tokens of a stream, rounded half to even after every window.

    Attributes:
        deficit: tokens still to keep, in units of 1/denominator of the share.
        odd: whether an odd number has been kept.
    """

    deficit: Int[Array, ""]
    odd: Bool[Array, ""]

    @classmethod
    def initial(cls) -> RunningShare:
        """The state before the first window."""
        return cls(jnp.int32(0), jnp.bool_(False))

    def advance(
        self, tokens: Int[Array, ""], share: Fraction
    ) -> tuple[RunningShare, Int[Array, ""]]:
        """The state after a window of ``tokens`` tokens, and the number of them to keep."""
        share = share.limit_denominator(STREAM_DENOMINATOR)
        deficit, unit = self.deficit + share.numerator * jnp.int32(tokens), share.denominator
        down, twice_rest = deficit // unit, 2 * (deficit % unit)
        up = (twice_rest > unit) | ((twice_rest == unit) & ((down % 2 == 1) ^ self.odd))
        count = down + up
        return RunningShare(deficit - count * unit, self.odd ^ (count % 2 == 1)), count


def running_share_bound(share: Fraction, slots: int) -> int:
    """The most tokens that a ``RunningShare`` keeps of a window with ``slots`` slots."""
    return min(slots * share.numerator // share.denominator + 1, slots)


def namespace(x: Any) -> Any:
    """numpy for numbers and arrays on the host, jax.numpy for those on the device."""
    return np if isinstance(x, int | float | np.generic | np.ndarray) else jnp
