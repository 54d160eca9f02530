"""The paper's rule for a stream: its two clip-wide steps, replaced by what is known so far.

The ranking of the audio tokens becomes a running threshold, the video budget a running balance.
Everything else of a window is shared with the look-ahead rule. docs/streaming.md has the
measurements behind the settings.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.audio import consolidate_window, pool_pairs, received_attention
from omnizip_jax.compression.budget import initial_rates
from omnizip_jax.compression.counts import (
    as_fraction,
    ceil_share,
    floor_share,
    lookup,
    nearest,
    round_share,
    salience_order,
)
from omnizip_jax.compression.settings import PaperSettings
from omnizip_jax.compression.share import salient_share
from omnizip_jax.compression.video import dpc_knn, istc, split_over_grids
from omnizip_jax.types import Selection

# How far a balance may stray to either side, in windows. Over 64 windows that is 0.8 % of the
# tokens, so the rates meet their point even where up to 14 of the windows have no sound.
BALANCE_SLACK = Fraction(1, 2)
AVERAGED_WINDOWS = 2**16  # after these the size of an average window is settled; int32 suffices


class Balance(struct.PyTreeNode):
    """A share of all tokens that came, less what was taken of them.

    Attributes:
        deficit: tokens still to take, in units of a fraction of a token; negative if too many were
            taken.
        tokens, windows: tokens so far, and windows that had any.
    """

    deficit: Int[Array, ""]
    tokens: Int[Array, ""]
    windows: Int[Array, ""]

    @classmethod
    def even(cls) -> Balance:
        """Before the first window."""
        return cls(jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def advance(self, tokens: Int[Array, ""], due: Int[Array, ""]) -> Balance:
        """A window has come, and of its tokens so many units are owed."""
        counts = (tokens > 0) & (self.windows < AVERAGED_WINDOWS)
        return Balance(
            deficit=self.deficit + due,
            tokens=self.tokens + jnp.where(counts, tokens, 0),
            windows=self.windows + counts,
        )

    def limits(self, unit: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The least and the most to take, so that what is owed stays within the slack."""
        average = self.tokens // jnp.maximum(self.windows, 1)
        slack = average * unit * BALANCE_SLACK.numerator // BALANCE_SLACK.denominator
        return -(-(self.deficit - slack) // unit), (self.deficit + slack) // unit

    def take(self, count: Int[Array, ""], unit: int) -> Balance:
        return self.replace(deficit=self.deficit - count * unit)


class CausalPlan(struct.PyTreeNode):
    """What a stream remembers of its past to choose tokens: static rings and two balances.

    Attributes:
        keys, key_mask: last-layer keys of the audio encoder, of the last K windows.
        scores, score_mask: audio scores of the last Q windows.
        audio_balance: of the tokens to be salient, ``1 - rho_audio`` of all.
        video_balance: of the video tokens to be discarded, ``rho_video`` of all; with ``keep``, of
            all tokens to be discarded.
        window: windows so far.
    """

    keys: Float[Array, "K T N H"]
    key_mask: Bool[Array, "K T"]
    scores: Float[Array, "Q A"]
    score_mask: Bool[Array, "Q A"]
    audio_balance: Balance
    video_balance: Balance
    window: Int[Array, ""]


def init_plan(
    config: PaperSettings, frames: int, heads: int, head_dim: int, dtype=jnp.float32
) -> CausalPlan:
    """The plan before the first window: T ``frames`` make T // 2 audio tokens in a window."""
    history, recent = config.key_windows, config.threshold_windows
    return CausalPlan(
        keys=jnp.zeros((history, frames, heads, head_dim), dtype),
        key_mask=jnp.zeros((history, frames), bool),
        scores=jnp.zeros((recent, frames // 2), jnp.float32),
        score_mask=jnp.zeros((recent, frames // 2), bool),
        audio_balance=Balance.even(),
        video_balance=Balance.even(),
        window=jnp.int32(0),
    )


UNIT = 1024  # of the audio balance, in a token, where a share of all tokens is held


def nominal_rates(config: PaperSettings, audio_slots: int, video_slots: int) -> tuple[float, float]:
    """``rho_audio`` and ``rho_video``, or with ``keep`` those of a full window."""
    if config.keep is None:
        return config.rho_audio, config.rho_video
    anchors = int(anchor_count(config, np.array(audio_slots)))
    kept = config.keep * (audio_slots + video_slots)
    salient = min(max(salient_share(kept, audio_slots, video_slots, anchors), 0.0), 1.0)
    heard = min(salient * audio_slots + anchors, audio_slots)
    seen = min(max(kept - heard, 0.0), video_slots)
    return 1 - salient, 1 - seen / max(video_slots, 1)


def anchor_count(config: PaperSettings, counts: np.ndarray) -> np.ndarray:
    """Anchors of windows with so many audio tokens, on the host."""
    share = as_fraction(config.anchor_ratio) if config.merge_size else Fraction(0)
    return round_share(share, counts)


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
    below = lookup(partial(ceil_share, as_fraction(rho_audio)), count, mask.size)
    return jnp.where(below > 0, in_order[below - 1], -jnp.inf)


def select_causal(
    plan: CausalPlan,
    scores: Float[Array, " A"],
    mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: PaperSettings,
) -> tuple[CausalPlan, Bool[Array, " A"]]:
    """Salient tokens of a window: those above the threshold, as many as the balance allows.

    The threshold looks at the last Q windows, this one included, so the very first window keeps
    its own share; later silence may keep nothing and a burst everything, until the tokens kept so
    far are ``BALANCE_SLACK`` away from ``1 - rho_audio`` of all that came; with ``keep``, from what
    the line through the paper's settings gives each window.
    """
    slot = plan.window % plan.scores.shape[0]
    ring = plan.scores.at[slot].set(scores)
    ring_mask = plan.score_mask.at[slot].set(mask)
    rho_audio, _ = nominal_rates(config, mask.size, video_mask.size)
    above = jnp.sum(mask & (scores > running_threshold(ring, ring_mask, rho_audio)))

    total = jnp.sum(mask)
    if config.keep is None:
        share = 1 - as_fraction(config.rho_audio)
        due, unit = share.numerator * total, share.denominator
        fewest, most = jnp.int32(0), total
    else:
        seen = jnp.sum(video_mask)
        anchors = lookup(partial(anchor_count, config), total, mask.size)
        salient = salient_share(config.keep * (total + seen), total, seen, anchors)
        due, unit = jnp.round(UNIT * jnp.clip(salient, 0, 1) * total).astype(jnp.int32), UNIT
        # What the balance of all tokens allows if the video gives everything, or nothing.
        least, largest = come_of_all(plan, total + seen, config).limits(dropped(config).denominator)
        fewest, most = total - largest, total + seen - least - anchors
    balance = plan.audio_balance.advance(total, due)
    count = jnp.clip(jnp.clip(above, *balance.limits(unit)), fewest, most)
    count = jnp.clip(count, 0, total)
    plan = plan.replace(scores=ring, score_mask=ring_mask, audio_balance=balance.take(count, unit))
    return plan, (salience_order(scores, mask) < count) & mask


def expected_rate(rho_audio: float, slots: int, config: PaperSettings) -> float:
    """Eq. 5 at the retention that the audio budget leads to, for windows of ``slots`` tokens.

    The salient tokens keep their balance, so this mean is known without looking ahead.
    """
    anchors = float(anchor_count(config, np.array(slots)))
    retention = min(1 - rho_audio + anchors / slots, 1.0)
    return config.rho_max - (config.rho_max - config.rho_min) * retention


def discard_causal(
    plan: CausalPlan,
    retention: Float[Array, ""],
    audio_mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: PaperSettings,
) -> tuple[CausalPlan, Int[Array, ""]]:
    """Video tokens that a window discards: eq. 5, scaled to the budget, kept in balance.

    Eq. 5 is scaled so that a window of expected retention has the rate ``rho_video``; so have
    windows without audio. The tokens discarded so far stay within ``BALANCE_SLACK`` of
    ``rho_video`` of all that came, and the rate inside ``[rho_min, rho_max]``; only where no
    integer satisfies both it passes a bound, by less than one token.
    """
    tokens, slots = jnp.sum(video_mask), video_mask.size
    scale = config.rho_video / max(expected_rate(config.rho_audio, audio_mask.size, config), 1e-6)
    guided = scale * jnp.maximum(initial_rates(retention, config), 1e-6)
    wanted = jnp.where(jnp.any(audio_mask), guided, config.rho_video) * tokens
    wanted = nearest(wanted)

    low, high = as_fraction(config.rho_min), as_fraction(config.rho_max)

    def bound(rule, share):
        return lookup(partial(rule, share), tokens, slots)

    inside = jnp.minimum(jnp.maximum(wanted, bound(ceil_share, low)), bound(floor_share, high))

    share = as_fraction(config.rho_video)
    balance = plan.video_balance.advance(tokens, share.numerator * tokens)
    least, most = balance.limits(share.denominator)
    least = jnp.minimum(least, bound(ceil_share, high))
    most = jnp.maximum(most, bound(floor_share, low))
    count = jnp.clip(inside, least, most)
    return plan.replace(video_balance=balance.take(count, share.denominator)), count


def discard_rest(
    plan: CausalPlan,
    audio_keep: Bool[Array, " A"],
    audio_mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: PaperSettings,
) -> tuple[CausalPlan, Int[Array, ""]]:
    """Video tokens that a window discards where a share of all tokens is held.

    Eq. 5 is scaled so that a window of expected retention keeps the share ``keep`` of its tokens;
    so do windows without audio. The tokens kept so far, audio included, stay within
    ``BALANCE_SLACK`` of ``keep`` of all that came. A bound of the rate that lies on the wrong side
    of what the window is to discard moves to the middle between that and nothing, or everything.
    """
    assert config.keep is not None
    heard, tokens = jnp.sum(audio_mask), jnp.sum(video_mask)
    kept = jnp.sum(audio_keep)
    anchors = lookup(partial(anchor_count, config), heard, audio_mask.size)
    salient = salient_share(config.keep * (heard + tokens), heard, tokens, anchors)
    expected = jnp.minimum(jnp.clip(salient, 0, 1) * heard + anchors, heard)
    target = jnp.clip(tokens - (config.keep * (heard + tokens) - expected), 0, tokens)

    rho_audio, _ = nominal_rates(config, audio_mask.size, video_mask.size)
    mean = max(expected_rate(rho_audio, audio_mask.size, config), 1e-6)
    retention = kept / jnp.maximum(heard, 1)
    guide = jnp.maximum(initial_rates(retention, config), 1e-6) / mean
    wanted = jnp.where(heard > 0, guide, 1) * target
    low, high = config.rho_min * tokens, config.rho_max * tokens
    low = jnp.where(target >= low, low, target / 2)
    high = jnp.where(target <= high, high, (target + tokens) / 2)
    wanted = nearest(jnp.clip(wanted, low, high))

    unit = dropped(config).denominator
    balance = come_of_all(plan, heard + tokens, config).take(heard - kept, unit)
    count = jnp.clip(wanted, *balance.limits(unit))
    most = most_of_window(config.keep, audio_mask.size, video_mask.size)
    count = jnp.clip(jnp.maximum(count, kept + tokens - most), 0, tokens)
    return plan.replace(video_balance=balance.take(count, unit)), count


def dropped(config: PaperSettings) -> Fraction:
    """The share of all tokens that ``keep`` leaves to discard."""
    assert config.keep is not None
    return 1 - as_fraction(config.keep)


def come_of_all(plan: CausalPlan, tokens: Int[Array, ""], config: PaperSettings) -> Balance:
    """The balance of all tokens to discard, once a window of so many has come."""
    return plan.video_balance.advance(tokens, dropped(config).numerator * tokens)


def most_of_window(keep: float, audio_slots: int, video_slots: int) -> int:
    """The most that a stream keeps of a window: a quarter of it beyond the share."""
    slots = audio_slots + video_slots
    return max(
        min(int(floor_share(as_fraction(keep), np.array(slots))) + slots // 4, slots), audio_slots
    )


def compress_causal(
    plan: CausalPlan,
    queries: Float[Array, "T N H"],
    keys: Float[Array, "T N H"],
    frame_mask: Bool[Array, " T"],
    audio: Float[Array, "A D"],
    audio_mask: Bool[Array, " A"],
    video: Float[Array, "G P D"],
    video_mask: Bool[Array, "G P"],
    config: PaperSettings,
) -> tuple[CausalPlan, Selection]:
    """Compress one window of a stream; a ``Selection`` without the axis of windows.

    Args:
        plan: the past.
        queries, keys, frame_mask: of the audio encoder's last layer, T frames.
        audio, audio_mask, video, video_mask: the window's tokens.
        config: the settings.
    """
    scores = causal_scores(plan, queries, keys, frame_mask)
    plan, salient = select_causal(plan, scores, audio_mask, video_mask, config)
    audio, anchors = consolidate_window(audio, audio_mask, salient, video, video_mask, config)
    if config.keep is None:
        retention = jnp.sum(salient | anchors) / jnp.maximum(jnp.sum(audio_mask), 1)
        plan, discards = discard_causal(plan, retention, audio_mask, video_mask, config)
    else:
        plan, discards = discard_rest(plan, salient | anchors, audio_mask, video_mask, config)
    grid_counts = jnp.sum(video_mask, axis=-1)
    tokens = jnp.sum(grid_counts)
    video_keep, video_order = istc(
        video,
        video_mask,
        split_over_grids(tokens - discards, grid_counts),
        partial(dpc_knn, knn=config.knn, relative=config.relative_distance),
    )
    slot = plan.window % plan.keys.shape[0]
    plan = plan.replace(
        keys=plan.keys.at[slot].set(keys),
        key_mask=plan.key_mask.at[slot].set(frame_mask),
        window=plan.window + 1,
    )
    return plan, Selection.of(
        audio_mask,
        video_mask,
        salient | anchors,
        video_keep,
        audio=audio,
        audio_salient=salient,
        audio_order=salience_order(scores, audio_mask),
        video_order=video_order,
    )
