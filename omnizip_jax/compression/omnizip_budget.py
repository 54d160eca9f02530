"""Section 3.3 (eq. 5) and appendix A: video tokens that each window discards."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from omnizip_jax.compression.counts import (
    as_fraction,
    ceil_share,
    floor_share,
    proportion,
    top_mask,
)
from omnizip_jax.compression.omnizip_steps import OmniZipSettings


def initial_rates(retention: Float[Array, "*W"], config: OmniZipSettings) -> Float[Array, "*W"]:
    """Eq. 5: the more of its audio a window keeps, the less of its video is pruned."""
    return config.rho_max - (config.rho_max - config.rho_min) * retention


def water_fill(
    weights: Float[Array, " W"],
    lower: Num[Array, " W"],
    upper: Num[Array, " W"],
    total: Num[Array, ""] | int,
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
    video_counts: Int[Array, " W"], total: Int[Array, ""] | int, config: OmniZipSettings
) -> tuple[Int[Array, " W"], Int[Array, " W"]]:
    """The fewest and the most video tokens that each window may discard, to discard ``total``.

    ``[rho_min, rho_max]`` of its tokens, rounded inwards; outwards where no such integers meet the
    total. A bound that still lies on the wrong side of the mean rate moves to the middle between
    that rate and 0, or 1.
    """
    low, high = as_fraction(config.rho_min), as_fraction(config.rho_max)
    tokens = jnp.sum(video_counts)
    lower, upper = ceil_share(low, video_counts), floor_share(high, video_counts)
    lower, upper = jnp.minimum(lower, upper), jnp.maximum(lower, upper)  # if none lies between
    twice = 2 * jnp.maximum(tokens, 1)
    half, _ = proportion(video_counts, total, twice)
    for looser in (floor_share(low, video_counts), half):
        lower = jnp.where(jnp.sum(lower) <= total, lower, looser)
    most, rest = proportion(video_counts, total + tokens, twice)
    for looser in (ceil_share(high, video_counts), most + (rest > 0)):
        upper = jnp.where(jnp.sum(upper) >= total, upper, looser)
    return lower, upper


def allocate_discards(
    retention: Float[Array, " W"],
    audio_counts: Int[Array, " W"],
    video_counts: Int[Array, " W"],
    total: Int[Array, ""] | int,
    config: OmniZipSettings,
    rate: float | None = None,
) -> Int[Array, " W"]:
    """Algorithm 1 with the budget met to the token: video tokens that each window discards.

    Windows with audio start from eq. 5 and are scaled by one common factor inside
    ``[rho_min, rho_max]``; windows without audio have the rate ``rate``. The largest remainders are
    rounded up; remainders within 1/1024 count as equal, and then the earlier window goes first.

    Bounds hold for the integers too, ``ceil(rho_min n) <= d <= floor(rho_max n)``, unless no
    integers inside them meet the budget; then a window may pass a bound by less than one token, or
    the bounds widen (``discard_bounds``). Should one of the two kinds of windows not reach its part
    of the budget inside the bounds, the other takes over the rest.

    Args:
        retention: S_a, share of each window's audio tokens that is kept, anchors included.
        audio_counts, video_counts: valid tokens of each window.
        total: video tokens that the clip discards.
        config: ``rho_min`` and ``rho_max``.
        rate: None: the mean rate, ``total`` over all video tokens.
    """
    mean = total / jnp.maximum(jnp.sum(video_counts), 1) if rate is None else rate
    lower, upper = discard_bounds(video_counts, total, config)

    guided = audio_counts > 0
    plain_share = mean * jnp.sum(jnp.where(guided, 0, video_counts))

    def within(share, members):
        return jnp.clip(
            share, jnp.sum(jnp.where(members, lower, 0)), jnp.sum(jnp.where(members, upper, 0))
        )

    guided_share = within(total - within(plain_share, ~guided), guided)

    # A rate of 0 cannot be scaled: such a window discards only after the others.
    rates = jnp.where(guided, jnp.maximum(initial_rates(retention, config), 1e-6), 1)
    weights = rates * jnp.maximum(video_counts, 1)

    def fill(members, share):
        bounds = jnp.where(members, lower, 0), jnp.where(members, upper, 0)
        return water_fill(weights, *bounds, share)

    shares = fill(guided, guided_share) + fill(~guided, total - guided_share)
    return whole_shares(shares, upper, total)


def whole_shares(
    shares: Float[Array, " W"], upper: Int[Array, " W"], total: Int[Array, ""] | int
) -> Int[Array, " W"]:
    """Round shares to integers with the sum ``total``: the largest remainders are rounded up."""
    whole = jnp.floor(shares)
    # Compared to a thousandth, so that windows that tie do so in float32 as well.
    remainders = jnp.round((shares - whole) * 1024)
    rounded_up = top_mask(remainders, whole < upper, total - jnp.sum(whole))
    return whole.astype(jnp.int32) + rounded_up
