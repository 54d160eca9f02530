"""How many tokens a share of them is: decided exactly, on the host, before anything is compiled.

A count of valid tokens is known only on the device, where ``share * count`` in float32 may land on
the wrong side of an integer or of a half. There are few possible counts, so each rule is evaluated
for all of them on the host and looked up on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

HostRule = Callable[[np.ndarray], np.ndarray]


def as_fraction(share: float) -> Fraction:
    """The share that was meant: 0.3 is 3/10, not the binary fraction nearest to it."""
    return Fraction(share).limit_denominator(10**6)


def floor_share(share: Fraction, counts: np.ndarray) -> np.ndarray:
    """``floor(share * counts)`` for non-negative integers, in integers."""
    return np.asarray(counts, np.int64) * share.numerator // share.denominator


def ceil_share(share: Fraction, counts: np.ndarray) -> np.ndarray:
    """``ceil(share * counts)`` for non-negative integers, in integers."""
    return -(-np.asarray(counts, np.int64) * share.numerator // share.denominator)


def round_share(share: Fraction, counts: np.ndarray) -> np.ndarray:
    """``share * counts`` rounded to the nearest integer, halves to the even one."""
    down = floor_share(share, counts)
    twice_rest = 2 * (np.asarray(counts, np.int64) * share.numerator % share.denominator)
    up = (twice_rest > share.denominator) | ((twice_rest == share.denominator) & (down % 2 == 1))
    return down + up


def nearest(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """The nearest integer; to a thousandth first, so that halves are halves in every program."""
    return jnp.round(jnp.round(x * 1024) / 1024).astype(jnp.int32)


def lookup(rule: HostRule, count: Int[Array, "*n"], limit: int) -> Int[Array, "*n"]:
    """``rule(count)`` on the device, from a table of the rule at 0 ... ``limit``."""
    return jnp.asarray(rule(np.arange(limit + 1)), jnp.int32)[count]


def apportion(total: Int[Array, ""], sizes: Int[Array, " n"]) -> Int[Array, " n"]:
    """``total`` of ``sum(sizes)`` tokens over groups in proportion to their sizes.

    The largest remainders are rounded up; of equal ones the earlier.
    """
    everything = jnp.maximum(jnp.sum(sizes), 1)
    share, rest = total * sizes // everything, total * sizes % everything
    return share + top_mask(rest.astype(jnp.float32), share < sizes, total - jnp.sum(share))


def salience_order(scores: Float[Array, " n"], valid: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Place of every score, 0 for the highest; ties go to the lower index, padding comes last."""
    lowest = jnp.finfo(scores.dtype).min  # a valid score of -inf still ranks above padding
    ranked = jnp.where(valid, jnp.maximum(scores, lowest), -jnp.inf)
    order = jnp.argsort(ranked, descending=True, stable=True)
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))


def top_mask(
    scores: Array, valid: Bool[Array, " n"], count: Num[Array, ""] | int
) -> Bool[Array, " n"]:
    """The ``count`` highest scores among the valid ones; of equal scores the lower index wins."""
    return (salience_order(scores, valid) < count) & valid
