"""Section 3.3 (eq. 5) and appendix A: how much video each window gives up."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from omnizip_jax.compression.counts import (
    as_fraction,
    ceil_share,
    floor_share,
    lookup,
    round_share,
    top_mask,
)
from omnizip_jax.compression.settings import Settings


def initial_rates(retention: Float[Array, "*W"], config: Settings) -> Float[Array, "*W"]:
    """Eq. 5: the more of its audio a window keeps, the less of its video is pruned."""
    return config.rho_max - (config.rho_max - config.rho_min) * retention


def water_fill(
    weights: Float[Array, " W"],
    lower: Num[Array, " W"],
    upper: Num[Array, " W"],
    total: Num[Array, ""],
) -> Float[Array, " W"]:
    """``clip(weights * s, lower, upper)`` with the one ``s`` for which the sum is ``total``.

    The sum grows with ``s`` and is linear between the points where a share meets one of its
    bounds, so the right piece is found first and ``s`` solved in it.

    Args:
        weights: positive.
        lower, upper: bounds of each share, ``0 <= lower <= upper``.
        total: between the sums of the bounds.
    """
    enters, leaves = lower / weights, upper / weights
    scales = jnp.sort(jnp.concatenate([enters, leaves]))
    filled = jnp.sum(jnp.clip(weights * scales[:, None], lower, upper), axis=-1)
    piece = jnp.maximum(jnp.sum(filled <= total) - 1, 0)
    start = scales[piece]
    slope = jnp.sum(jnp.where((enters <= start) & (start < leaves), weights, 0))
    scale = start + jnp.where(slope > 0, (total - filled[piece]) / jnp.maximum(slope, 1e-30), 0)
    return jnp.clip(weights * scale, lower, upper)


def discard_bounds(
    video_counts: Int[Array, " W"], total: Int[Array, ""], config: Settings, slots: int
) -> tuple[Int[Array, " W"], Int[Array, " W"]]:
    """The fewest and the most video tokens that each window may discard, to discard ``total``.

    ``[rho_min, rho_max]`` of its tokens, rounded inwards; outwards where no such integers meet the
    total. A bound that still lies on the wrong side of the mean rate moves to the middle between
    that rate and 0, or 1.
    """

    def bound(rule, share):
        return lookup(partial(rule, share), video_counts, slots)

    low, high, tokens = (
        as_fraction(config.rho_min),
        as_fraction(config.rho_max),
        jnp.sum(video_counts),
    )
    lower, upper = bound(ceil_share, low), bound(floor_share, high)
    lower, upper = jnp.minimum(lower, upper), jnp.maximum(lower, upper)  # if none lies between
    twice = 2 * jnp.maximum(tokens, 1)
    for looser in (bound(floor_share, low), video_counts * total // twice):
        lower = jnp.where(jnp.sum(lower) <= total, lower, looser)
    for looser in (bound(ceil_share, high), -(-video_counts * (total + tokens) // twice)):
        upper = jnp.where(jnp.sum(upper) >= total, upper, looser)
    return lower, upper


def allocate_discards(
    retention: Float[Array, " W"],
    audio_counts: Int[Array, " W"],
    video_counts: Int[Array, " W"],
    config: Settings,
    slots: int,
    total: Int[Array, ""] | None = None,
) -> Int[Array, " W"]:
    """Algorithm 1 with the budget met to the token: video tokens that each window discards.

    The clip discards ``rho_video`` of its video tokens, rounded half to even. Windows with audio
    start from eq. 5 and are scaled by one common factor inside ``[rho_min, rho_max]``; windows
    without audio have the rate ``rho_video``. The largest remainders are rounded up; remainders
    within 1/1024 count as equal, and then the earlier window goes first.

    Bounds hold for the integers too, ``ceil(rho_min n) <= d <= floor(rho_max n)``, unless no
    integers inside them meet the budget; then a window may pass a bound by less than one token.
    Should one of the two kinds of windows not reach its part of the budget inside the bounds, the
    other takes over the rest.

    Args:
        retention: S_a, share of each window's audio tokens that is kept, anchors included.
        audio_counts, video_counts: valid tokens of each window.
        config: the rates; without ``total`` the caller guarantees
            ``rho_min <= rho_video <= rho_max``.
        slots: static bound on ``video_counts``.
        total: video tokens to discard of the clip instead of ``rho_video`` of them; where the
            bounds cannot meet it they widen (``discard_bounds``).
    """
    rate, tokens = config.rho_video, jnp.sum(video_counts)
    if total is None:
        rule = partial(round_share, as_fraction(rate))
        total = lookup(rule, tokens, slots * video_counts.size)
    else:
        rate = total / jnp.maximum(tokens, 1)
    lower, upper = discard_bounds(video_counts, total, config, slots)

    guided = audio_counts > 0
    plain_share = rate * jnp.sum(jnp.where(guided, 0, video_counts))

    def within(share, these):
        return jnp.clip(
            share, jnp.sum(jnp.where(these, lower, 0)), jnp.sum(jnp.where(these, upper, 0))
        )

    guided_share = within(total - within(plain_share, ~guided), guided)

    # A rate of 0 cannot be scaled: such a window gives only after the others have given all.
    rates = jnp.where(guided, jnp.maximum(initial_rates(retention, config), 1e-6), 1)
    weights = rates * jnp.maximum(video_counts, 1)

    def fill(these, share):
        return water_fill(weights, jnp.where(these, lower, 0), jnp.where(these, upper, 0), share)

    shares = fill(guided, guided_share) + fill(~guided, total - guided_share)
    return whole_shares(shares, upper, total)


def whole_shares(
    shares: Float[Array, " W"], upper: Int[Array, " W"], total: Int[Array, ""]
) -> Int[Array, " W"]:
    """Shares whose sum is ``total`` as integers: the largest remainders are rounded up."""
    whole = jnp.floor(shares)
    # Compared to a thousandth, so that windows that tie do so in float32 as well.
    remainders = jnp.round((shares - whole) * 1024)
    rounded_up = top_mask(remainders, whole < upper, total - jnp.sum(whole))
    return whole.astype(jnp.int32) + rounded_up
