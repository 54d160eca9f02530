"""The paper's rule for a stream: its two clip-wide steps, replaced by what is known so far.

The ranking of the audio tokens becomes a running threshold, the video budget a running balance.
Everything else of a window is shared with the look-ahead rule.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.audio import pool_pairs, received_attention
from omnizip_jax.compression.budget import initial_rates
from omnizip_jax.compression.counts import (
    ceil_share,
    exact,
    floor_share,
    lookup,
    salience_order,
)
from omnizip_jax.compression.video import dpc_knn, istc, split_over_grids
from omnizip_jax.compression.window import CompressedClip, consolidate_window
from omnizip_jax.config import OmniZipConfig

BALANCE_SLACK = 0.5  # of a window's tokens: how far the balance may stray to either side


class CausalPlan(struct.PyTreeNode):
    """What a stream remembers of its past to choose tokens: static rings and two balances.

    Attributes:
        keys, key_mask: last-layer keys of the audio encoder, of the last K windows.
        scores, score_mask: audio scores of the last Q windows.
        audio_balance, video_balance: tokens that may still be salient, and that should still have
            been discarded, in units of 1/denominator of ``rho_audio`` and ``rho_video``.
        rate_sum, token_sum: eq. 5 and video tokens, summed with exponential decay over Q windows.
        window: windows so far.
    """

    keys: Float[Array, "K T N H"]
    key_mask: Bool[Array, "K T"]
    scores: Float[Array, "Q A"]
    score_mask: Bool[Array, "Q A"]
    audio_balance: Int[Array, ""]
    video_balance: Int[Array, ""]
    rate_sum: Float[Array, ""]
    token_sum: Float[Array, ""]
    window: Int[Array, ""]


def init_plan(
    config: OmniZipConfig, frames: int, heads: int, head_dim: int, dtype=jnp.float32
) -> CausalPlan:
    """The plan before the first window: T ``frames`` make T // 2 audio tokens in a window."""
    history, recent = config.key_windows, config.threshold_windows
    return CausalPlan(
        keys=jnp.zeros((history, frames, heads, head_dim), dtype),
        key_mask=jnp.zeros((history, frames), bool),
        scores=jnp.zeros((recent, frames // 2), jnp.float32),
        score_mask=jnp.zeros((recent, frames // 2), bool),
        audio_balance=jnp.int32(0),
        video_balance=jnp.int32(0),
        rate_sum=jnp.float32(0),
        token_sum=jnp.float32(0),
        window=jnp.int32(0),
    )


def causal_scores(
    plan: CausalPlan,
    queries: Float[Array, "T N H"],
    keys: Float[Array, "T N H"],
    frame_mask: Bool[Array, " T"],
) -> Float[Array, " A"]:
    """Eq. 2 with what is known: attention of this window's queries to its own keys.

    The softmax runs over the keys of this and the last K windows; times their number, so that
    scores of windows with more and less history compare (1 is an average key).
    """
    all_keys = jnp.concatenate([plan.keys.reshape(-1, *keys.shape[1:]), keys])
    all_mask = jnp.concatenate([plan.key_mask.reshape(-1), frame_mask])
    received = received_attention(queries, frame_mask, all_keys, all_mask)[-frame_mask.size :]
    share = received / jnp.maximum(jnp.sum(frame_mask), 1)
    return pool_pairs(share * jnp.sum(all_mask), frame_mask)


def running_threshold(
    scores: Float[Array, "Q A"], mask: Bool[Array, "Q A"], rho_audio: float
) -> Float[Array, ""]:
    """The ``rho_audio``-quantile of the recent scores; what exceeds it is salient."""
    count = jnp.sum(mask)
    in_order = jnp.sort(jnp.where(mask, scores, jnp.inf).reshape(-1))
    below = lookup(partial(ceil_share, exact(rho_audio)), count, mask.size)
    return jnp.where(below > 0, in_order[below - 1], -jnp.inf)


def select_causal(
    plan: CausalPlan,
    scores: Float[Array, " A"],
    mask: Bool[Array, " A"],
    config: OmniZipConfig,
) -> tuple[CausalPlan, Bool[Array, " A"]]:
    """Salient tokens of a window: those above the threshold, as many as the balance allows.

    The threshold looks at the recent windows and this one, so the very first window keeps its own
    share; silence may keep nothing and a burst everything, until the balance of kept tokens is
    half a window away from ``1 - rho_audio`` of all that came.
    """
    slot = plan.window % plan.scores.shape[0]
    ring = plan.scores.at[slot].set(scores)
    ring_mask = plan.score_mask.at[slot].set(mask)
    above = jnp.sum(mask & (scores > running_threshold(ring, ring_mask, config.rho_audio)))

    share = 1 - exact(config.rho_audio)
    unit, total = share.denominator, jnp.sum(mask)
    balance = plan.audio_balance + share.numerator * total
    slack = int(BALANCE_SLACK * mask.size * unit)
    least, most = -(-(balance - slack) // unit), (balance + slack) // unit
    count = jnp.clip(jnp.clip(above, least, most), 0, total)
    plan = plan.replace(scores=ring, score_mask=ring_mask, audio_balance=balance - count * unit)
    return plan, (salience_order(scores, mask) < count) & mask


def discard_causal(
    plan: CausalPlan,
    retention: Float[Array, ""],
    has_audio: Bool[Array, ""],
    tokens: Int[Array, ""],
    config: OmniZipConfig,
    slots: int,
) -> tuple[CausalPlan, Int[Array, ""]]:
    """Video tokens that a window discards: eq. 5, scaled by its recent mean, kept in balance.

    Windows without audio start from ``rho_video``. The balance of discarded tokens stays within
    half a window of ``rho_video`` of all that came, unless ``[rho_min, rho_max]`` forbids it.
    """
    rate = jnp.where(has_audio, initial_rates(retention, config), config.rho_video)
    decay = 1 - 1 / plan.scores.shape[0]
    rate_sum = decay * plan.rate_sum + rate * tokens
    token_sum = decay * plan.token_sum + tokens
    scale = config.rho_video * token_sum / jnp.maximum(rate_sum, 1e-6)
    wanted = jnp.round(rate * scale * tokens).astype(jnp.int32)

    share = exact(config.rho_video)
    unit = share.denominator
    balance = plan.video_balance + share.numerator * tokens
    slack = int(BALANCE_SLACK * slots * unit)
    wanted = jnp.clip(wanted, -(-(balance - slack) // unit), (balance + slack) // unit)
    low = lookup(partial(ceil_share, exact(config.rho_min)), tokens, slots)
    high = lookup(partial(floor_share, exact(config.rho_max)), tokens, slots)
    count = jnp.clip(wanted, jnp.minimum(low, high), high)
    plan = plan.replace(
        rate_sum=rate_sum, token_sum=token_sum, video_balance=balance - count * unit
    )
    return plan, count


def compress_causal(
    plan: CausalPlan,
    queries: Float[Array, "T N H"],
    keys: Float[Array, "T N H"],
    frame_mask: Bool[Array, " T"],
    audio: Float[Array, "A D"],
    audio_mask: Bool[Array, " A"],
    video: Float[Array, "G P D"],
    video_mask: Bool[Array, "G P"],
    config: OmniZipConfig,
) -> tuple[CausalPlan, CompressedClip]:
    """Compress one window of a stream; a ``CompressedClip`` without the axis of windows.

    Args:
        plan: the past.
        queries, keys, frame_mask: of the audio encoder's last layer, T frames.
        audio, audio_mask, video, video_mask: the window's tokens.
        config: the settings; its rule must be the paper's.
    """
    scores = causal_scores(plan, queries, keys, frame_mask)
    plan, salient = select_causal(plan, scores, audio_mask, config)
    audio, anchors = consolidate_window(audio, audio_mask, salient, video, video_mask, config)
    total = jnp.sum(audio_mask)
    retention = jnp.sum(salient | anchors) / jnp.maximum(total, 1)
    tokens = jnp.sum(video_mask)
    plan, discards = discard_causal(plan, retention, total > 0, tokens, config, video_mask.size)
    grid_counts = jnp.sum(video_mask, axis=-1)
    video_keep, video_order = istc(
        video,
        video_mask,
        split_over_grids(tokens - discards, grid_counts),
        partial(dpc_knn, knn=config.knn),
    )
    slot = plan.window % plan.keys.shape[0]
    plan = plan.replace(
        keys=plan.keys.at[slot].set(keys),
        key_mask=plan.key_mask.at[slot].set(frame_mask),
        window=plan.window + 1,
    )
    return plan, CompressedClip(
        audio=audio,
        audio_keep=salient | anchors,
        audio_salient=salient,
        audio_order=salience_order(scores, audio_mask),
        video_keep=video_keep,
        video_order=video_order,
        audio_retention=retention,
        video_rate=discards / jnp.maximum(tokens, 1),
    )
