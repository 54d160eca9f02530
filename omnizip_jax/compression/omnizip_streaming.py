"""The paper's rule for a stream, which replaces its two clip-wide steps by running ones.

The ranking of the audio tokens becomes a running threshold, the video budget a running balance.
All other steps of a window are those of the look-ahead rule. docs/causal.md has the
measurements behind the settings.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.counts import (
    STREAM_DENOMINATOR,
    as_fraction,
    ceil_share,
    floor_share,
    nearest,
    round_share,
    salience_order,
    salient_share,
)
from omnizip_jax.compression.omnizip_audio import consolidate_window, pool_pairs, received_attention
from omnizip_jax.compression.omnizip_budget import initial_rates
from omnizip_jax.compression.omnizip_steps import OmniZipSettings
from omnizip_jax.compression.omnizip_video import dpc_knn, istc, split_over_grids
from omnizip_jax.compression.per_modality import PerModality
from omnizip_jax.types import EncodedWindow, Selection

# How far a balance may deviate to either side, in windows. Over 64 windows that is 0.8 % of the
# tokens, so the rates meet their target even where up to 14 of the windows have no audio.
BALANCE_SLACK = Fraction(1, 2)
AVERAGED_WINDOWS = 2**16  # windows that the average window size is taken over; int32 suffices
UNIT = 1024  # of the audio balance, in a token, where a share of all tokens is held


class Balance(struct.PyTreeNode):
    """A share of all tokens of a stream, less the tokens taken.

    Attributes:
        deficit: tokens still to take, in units of a fraction of a token; negative if too many were
            taken.
        tokens, windows: tokens so far, and windows that had any.
    """

    deficit: Int[Array, ""]
    tokens: Int[Array, ""]
    windows: Int[Array, ""]

    @classmethod
    def initial(cls) -> Balance:
        """The balance before the first window."""
        return cls(jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def advance(self, tokens: Int[Array, ""], due: Int[Array, ""]) -> Balance:
        """The balance after a window of ``tokens`` tokens, ``due`` units of which are to take."""
        counts = (tokens > 0) & (self.windows < AVERAGED_WINDOWS)
        return Balance(
            deficit=self.deficit + due,
            tokens=self.tokens + jnp.where(counts, tokens, 0),
            windows=self.windows + counts,
        )

    def limits(self, unit: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The least and the most tokens to take, so that the deficit remains within the slack."""
        average = self.tokens // jnp.maximum(self.windows, 1)
        slack = average * unit * BALANCE_SLACK.numerator // BALANCE_SLACK.denominator
        return -(-(self.deficit - slack) // unit), (self.deficit + slack) // unit

    def subtract(self, count: Int[Array, ""], unit: int) -> Balance:
        """The balance after ``count`` tokens were taken."""
        return self.replace(deficit=self.deficit - count * unit)


class CausalState(struct.PyTreeNode):
    """State of a stream's token selection: ring buffers of static size and two balances.

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


@dataclasses.dataclass(frozen=True)
class StreamedOmniZip(OmniZipSettings, PerModality):
    """The paper's rule in a stream, with the settings that the authors' code does not have.

    Args:
        relative_distance: let DPC-KNN measure distances relative to the largest in the grid, so
            that the scale of the features does not matter (docs/accuracy.md); the paper does not.
        key_windows: past windows whose keys causal audio scores include.
        threshold_windows: recent windows whose scores the causal ranking includes.
    """

    relative_distance: bool = True
    key_windows: int = 32
    threshold_windows: int = 16
    streams: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.key_windows < 1 or self.threshold_windows < 1:
            raise ValueError(
                f"{type(self).__name__}: key_windows and threshold_windows must be at least 1, got "
                f"{self.key_windows} and {self.threshold_windows}"
            )

    def salient_target(self, audio: Any, video: Any, anchors: Any) -> Any:
        """``1 - rho_audio`` of a window under ``keep``; may lie outside 0 to 1."""
        assert self.keep is not None
        if self.split == "uniform":
            return self.keep - anchors / (audio + (audio == 0))
        return salient_share(self.keep * (audio + video), audio, video, anchors)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """At most ``1 - rho_min`` of a window's video is kept; its audio may be kept whole."""
        if self.keep is not None:
            return kept_bound(self.keep, audio_slots, video_slots)
        return audio_slots + video_slots - int(self.rho_min * video_slots)

    def begin(self, window: EncodedWindow) -> CausalState:
        frames, heads, size = window.audio.keys.shape
        return initial_state(self, frames, heads, size, window.audio.keys.dtype)

    def step(
        self, state: CausalState, window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[CausalState, Selection]:
        return compress_window(state, window, self)


def initial_state(
    config: StreamedOmniZip, frames: int, heads: int, head_dim: int, dtype=jnp.float32
) -> CausalState:
    """The state before the first window, for T ``frames`` and T // 2 audio tokens per window."""
    history, recent = config.key_windows, config.threshold_windows
    return CausalState(
        keys=jnp.zeros((history, frames, heads, head_dim), dtype),
        key_mask=jnp.zeros((history, frames), bool),
        scores=jnp.zeros((recent, frames // 2), jnp.float32),
        score_mask=jnp.zeros((recent, frames // 2), bool),
        audio_balance=Balance.initial(),
        video_balance=Balance.initial(),
        window=jnp.int32(0),
    )


def nominal_rates(
    config: StreamedOmniZip, audio_slots: int, video_slots: int
) -> tuple[float, float]:
    """``rho_audio`` and ``rho_video``, or with ``keep`` those of a full window."""
    if config.keep is None:
        return config.rho_audio, config.rho_video
    anchors = anchor_count(config, audio_slots)
    salient = min(max(config.salient_target(audio_slots, video_slots, anchors), 0.0), 1.0)
    audio = min(salient * audio_slots + anchors, audio_slots)
    video = min(max(config.keep * (audio_slots + video_slots) - audio, 0.0), video_slots)
    return 1 - salient, 1 - video / max(video_slots, 1)


def anchor_count(config: OmniZipSettings, counts: Any) -> Any:
    """Anchors of windows with ``counts`` audio tokens, integers on the host or on the device."""
    share = as_fraction(config.anchor_ratio) if config.merge_size else Fraction(0)
    return round_share(share, counts)


def causal_scores(
    state: CausalState,
    queries: Float[Array, "T N H"],
    keys: Float[Array, "T N H"],
    frame_mask: Bool[Array, " T"],
) -> Float[Array, " A"]:
    """Causal form of eq. 2: attention of this window's queries to its own keys.

    The softmax runs over the keys of this and the last K windows; multiplied by their number, so
    that scores with longer and shorter history are comparable (1 is an average key).
    """
    all_keys = jnp.concatenate([state.keys.reshape(-1, *keys.shape[1:]), keys])
    all_mask = jnp.concatenate([state.key_mask.reshape(-1), frame_mask])
    received = received_attention(queries, frame_mask, all_keys, all_mask)[-frame_mask.size :]
    share = received / jnp.maximum(jnp.sum(frame_mask), 1)
    return pool_pairs(share * jnp.sum(all_mask), frame_mask)


def running_threshold(
    scores: Float[Array, "Q A"], mask: Bool[Array, "Q A"], rho_audio: float
) -> Float[Array, ""]:
    """The ``rho_audio``-quantile of the recent scores; higher scores are salient."""
    count = jnp.sum(mask)
    in_order = jnp.sort(jnp.where(mask, scores, jnp.inf).reshape(-1))
    below = ceil_share(as_fraction(rho_audio), count)
    return jnp.where(below > 0, in_order[below - 1], -jnp.inf)


def select_causal(
    state: CausalState,
    scores: Float[Array, " A"],
    mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: StreamedOmniZip,
) -> tuple[CausalState, Bool[Array, " A"]]:
    """Salient tokens of a window: those above the threshold, limited by the balance.

    The threshold uses the last Q windows, this one included, so the very first window keeps its
    own share. Later silence may keep nothing and a burst everything, until the tokens kept so far
    are ``BALANCE_SLACK`` away from ``1 - rho_audio`` of all; with ``keep``, from the sum of the
    windows' targets (``salient_target``).
    """
    slot = state.window % state.scores.shape[0]
    ring = state.scores.at[slot].set(scores)
    ring_mask = state.score_mask.at[slot].set(mask)
    rho_audio, _ = nominal_rates(config, mask.size, video_mask.size)
    above = jnp.sum(mask & (scores > running_threshold(ring, ring_mask, rho_audio)))

    tokens = jnp.sum(mask)
    if config.keep is None:
        share = 1 - as_fraction(config.rho_audio, STREAM_DENOMINATOR)
        due, unit = share.numerator * tokens, share.denominator
        fewest, most = jnp.int32(0), tokens
    else:
        video = jnp.sum(video_mask)
        anchors = anchor_count(config, tokens)
        salient = config.salient_target(tokens, video, anchors)
        due, unit = jnp.round(UNIT * jnp.clip(salient, 0, 1) * tokens).astype(jnp.int32), UNIT
        # Limits of the balance of all tokens if the video discards everything, or nothing.
        discard = discard_share(config).denominator
        least, largest = discard_balance(state, tokens + video, config).limits(discard)
        fewest, most = tokens - largest, tokens + video - least - anchors
    balance = state.audio_balance.advance(tokens, due)
    count = jnp.clip(jnp.clip(above, *balance.limits(unit)), fewest, most)
    count = jnp.clip(count, 0, tokens)
    balance = balance.subtract(count, unit)
    state = state.replace(scores=ring, score_mask=ring_mask, audio_balance=balance)
    return state, (salience_order(scores, mask) < count) & mask


def expected_rate(rho_audio: float, slots: int, config: StreamedOmniZip) -> float:
    """Eq. 5 at the mean retention of windows with ``slots`` audio tokens.

    The salient tokens keep their balance, so this mean is known without look-ahead.
    """
    retention = min(1 - rho_audio + anchor_count(config, slots) / slots, 1.0)
    return config.rho_max - (config.rho_max - config.rho_min) * retention


def discard_causal(
    state: CausalState,
    audio_keep: Bool[Array, " A"],
    audio_mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: StreamedOmniZip,
) -> tuple[CausalState, Int[Array, ""]]:
    """Video tokens that a window discards: eq. 5, scaled to the budget and limited by the balance.

    Eq. 5 is scaled so that a window of expected retention has the rate ``rho_video``, the rate of
    windows without audio. The tokens discarded so far remain within ``BALANCE_SLACK`` of
    ``rho_video`` of all, and the rate inside ``[rho_min, rho_max]``; where no integer satisfies
    both, the rate exceeds a bound by less than one token.
    """
    tokens = jnp.sum(video_mask)
    scale = config.rho_video / max(expected_rate(config.rho_audio, audio_mask.size, config), 1e-6)
    retention = jnp.sum(audio_keep) / jnp.maximum(jnp.sum(audio_mask), 1)
    guided = scale * jnp.maximum(initial_rates(retention, config), 1e-6)
    target = nearest(jnp.where(jnp.any(audio_mask), guided, config.rho_video) * tokens)
    low, high = as_fraction(config.rho_min), as_fraction(config.rho_max)
    inside = jnp.maximum(target, ceil_share(low, tokens))
    inside = jnp.minimum(inside, floor_share(high, tokens))

    share = as_fraction(config.rho_video, STREAM_DENOMINATOR)
    balance = state.video_balance.advance(tokens, share.numerator * tokens)
    least, most = balance.limits(share.denominator)
    least = jnp.minimum(least, ceil_share(high, tokens))
    most = jnp.maximum(most, floor_share(low, tokens))
    count = jnp.clip(inside, least, most)
    return state.replace(video_balance=balance.subtract(count, share.denominator)), count


def discard_rest(
    state: CausalState,
    audio_keep: Bool[Array, " A"],
    audio_mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: StreamedOmniZip,
) -> tuple[CausalState, Int[Array, ""]]:
    """Video tokens that a window discards under ``keep``, a share of all tokens.

    Eq. 5 is scaled so that a window of expected retention keeps the share ``keep`` of its tokens,
    the share of windows without audio. The tokens kept so far, audio included, remain within
    ``BALANCE_SLACK`` of ``keep`` of all. A bound of the rate on the wrong side of the window's
    target moves to the middle between the target and no tokens, or all.
    """
    assert config.keep is not None
    audio, tokens = jnp.sum(audio_mask), jnp.sum(video_mask)
    kept = jnp.sum(audio_keep)
    anchors = anchor_count(config, audio)
    salient = config.salient_target(audio, tokens, anchors)
    expected = jnp.minimum(jnp.clip(salient, 0, 1) * audio + anchors, audio)
    target = jnp.clip(tokens - (config.keep * (audio + tokens) - expected), 0, tokens)

    rho_audio, _ = nominal_rates(config, audio_mask.size, video_mask.size)
    mean = max(expected_rate(rho_audio, audio_mask.size, config), 1e-6)
    retention = kept / jnp.maximum(audio, 1)
    guide = jnp.maximum(initial_rates(retention, config), 1e-6) / mean
    guided = jnp.where(audio > 0, guide, 1) * target
    low, high = config.rho_min * tokens, config.rho_max * tokens
    low = jnp.where(target >= low, low, target / 2)
    high = jnp.where(target <= high, high, (target + tokens) / 2)
    count = nearest(jnp.clip(guided, low, high))

    unit = discard_share(config).denominator
    balance = discard_balance(state, audio + tokens, config).subtract(audio - kept, unit)
    count = jnp.clip(count, *balance.limits(unit))
    most = kept_bound(config.keep, audio_mask.size, video_mask.size)
    count = jnp.clip(jnp.maximum(count, kept + tokens - most), 0, tokens)
    return state.replace(video_balance=balance.subtract(count, unit)), count


def discard_share(config: StreamedOmniZip) -> Fraction:
    """The share of all tokens that ``keep`` discards."""
    assert config.keep is not None
    return 1 - as_fraction(config.keep, STREAM_DENOMINATOR)


def discard_balance(state: CausalState, tokens: Int[Array, ""], config: StreamedOmniZip) -> Balance:
    """The balance of all tokens to discard, after a window of ``tokens`` tokens."""
    return state.video_balance.advance(tokens, discard_share(config).numerator * tokens)


def kept_bound(keep: float, audio_slots: int, video_slots: int) -> int:
    """The most tokens that a stream keeps of a window: its share and a quarter of its slots."""
    slots = audio_slots + video_slots
    return max(min(floor_share(as_fraction(keep), slots) + slots // 4, slots), audio_slots)


def compress_window(
    state: CausalState, window: EncodedWindow, config: StreamedOmniZip
) -> tuple[CausalState, Selection]:
    """Compress one window of a stream; a ``Selection`` without the axis of windows."""
    audio, video, video_mask = window.audio, window.video, window.video_mask
    scores = causal_scores(state, audio.queries, audio.keys, audio.frame_mask)
    state, salient = select_causal(state, scores, audio.token_mask, video_mask, config)
    tokens, anchors = consolidate_window(
        audio.tokens,
        audio.token_mask,
        salient,
        video,
        video_mask,
        config.merge_size,
        config.anchor_ratio,
    )
    audio_keep = salient | anchors
    discard = discard_causal if config.keep is None else discard_rest
    state, discards = discard(state, audio_keep, audio.token_mask, video_mask, config)
    grid_counts = jnp.sum(video_mask, axis=-1)
    video_keep, video_order = istc(
        video,
        video_mask,
        split_over_grids(jnp.sum(grid_counts) - discards, grid_counts),
        partial(dpc_knn, knn=config.knn, relative=config.relative_distance),
    )
    slot = state.window % state.keys.shape[0]
    state = state.replace(
        keys=state.keys.at[slot].set(audio.keys),
        key_mask=state.key_mask.at[slot].set(audio.frame_mask),
        window=state.window + 1,
    )
    return state, Selection.of(
        audio.token_mask,
        video_mask,
        audio_keep,
        video_keep,
        audio=tokens,
        audio_salient=salient,
        audio_order=salience_order(scores, audio.token_mask),
        video_order=video_order,
    )
