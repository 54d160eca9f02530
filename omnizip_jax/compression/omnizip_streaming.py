"""The paper's rule for a stream, which replaces its two clip-wide steps by running ones.

The ranking of the audio tokens becomes a running threshold, the video budget a running balance.
All other steps of a window are those of the look-ahead rule. docs/causal.md has the
measurements behind the settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

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
from omnizip_jax.compression.omnizip_audio import (
    consolidate_window,
    pool_frames,
    received_attention,
)
from omnizip_jax.compression.omnizip_budget import initial_rates
from omnizip_jax.compression.omnizip_steps import OmniZipSettings
from omnizip_jax.compression.omnizip_video import dpc_knn, istc, split_over_grids
from omnizip_jax.compression.per_modality import PerModality
from omnizip_jax.types import EncodedWindow, Selection
from omnizip_jax.window_spec import check_positive

# How far a balance may deviate to either side, in windows. Over 64 windows that is 0.8 % of the
# tokens, so the rates meet their target even where up to 14 of the windows have no audio.
BALANCE_SLACK = Fraction(1, 2)
AVERAGED_WINDOWS = 2**14  # windows that the average window size is taken over; int32 suffices
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
            deficit=self.deficit + jnp.int32(due),
            tokens=self.tokens + jnp.where(counts, jnp.int32(tokens), 0),
            windows=self.windows + counts,
        )

    def limits(self, unit: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The least and the most tokens to take, so that the deficit remains within the slack."""
        average = self.tokens // jnp.maximum(self.windows, 1)
        slack = average * unit * BALANCE_SLACK.numerator // BALANCE_SLACK.denominator
        return -(-(self.deficit - slack) // unit), (self.deficit + slack) // unit

    def subtract(self, count: Int[Array, ""], unit: int) -> Balance:
        """The balance after ``count`` tokens were taken."""
        return self.replace(deficit=self.deficit - jnp.int32(count) * unit)


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
        check_positive(self, "key_windows", "threshold_windows")

    @property
    def consolidate(self) -> Callable[..., tuple[Array, Array]]:
        """``consolidate_window`` with the method's anchors."""
        return partial(
            consolidate_window, merge_size=self.merge_size, anchor_ratio=self.anchor_ratio
        )

    @property
    def spatial(self) -> Callable[..., Array]:
        """``dpc_knn`` with the method's neighbours and distances."""
        return partial(dpc_knn, knn=self.knn, relative=self.relative_distance)

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
        history, recent, keys = self.key_windows, self.threshold_windows, window.audio.keys
        slots = window.audio.token_mask.size
        return CausalState(
            keys=jnp.zeros((history, *keys.shape), keys.dtype),
            key_mask=jnp.zeros((history, keys.shape[0]), bool),
            scores=jnp.zeros((recent, slots), jnp.float32),
            score_mask=jnp.zeros((recent, slots), bool),
            audio_balance=Balance.initial(),
            video_balance=Balance.initial(),
            window=jnp.int32(0),
        )

    def step(self, state, window, key):
        audio, video, video_mask = window.audio, window.video, window.video_mask
        tokens = jnp.sum(video_mask) + (jnp.sum(audio.token_mask) if self.keep is not None else 0)
        discards = discard_share(self).numerator * tokens
        state = state.replace(video_balance=state.video_balance.advance(tokens, discards))
        scores = causal_scores(state, audio.queries, audio.keys, audio.frame_mask)
        state, salient = select_causal(state, scores, audio.token_mask, video_mask, self)
        tokens, anchors = self.consolidate(
            audio.tokens, audio.token_mask, salient, video, video_mask
        )
        audio_keep = salient | anchors
        state, discards = discard_causal(state, audio_keep, audio.token_mask, video_mask, self)
        grid_counts = jnp.sum(video_mask, axis=-1)
        kept = split_over_grids(jnp.sum(grid_counts) - discards, grid_counts)
        video_keep = istc(video, video_mask, kept, self.spatial)
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
    return pool_frames(share * jnp.sum(all_mask), frame_mask, state.scores.shape[-1])


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
        video, anchors = jnp.sum(video_mask), anchor_count(config, tokens)
        salient = config.salient_target(tokens, video, anchors)
        due, unit = jnp.round(UNIT * jnp.clip(salient, 0, 1) * tokens).astype(jnp.int32), UNIT
        # Limits of the balance of all tokens if the video discards everything, or nothing.
        least, largest = state.video_balance.limits(discard_share(config).denominator)
        fewest, most = tokens - largest, tokens + video - least - anchors
    balance = state.audio_balance.advance(tokens, due)
    count = jnp.clip(jnp.clip(above, *balance.limits(unit)), fewest, most)
    count = jnp.clip(count, 0, tokens)
    balance = balance.subtract(count, unit)
    state = state.replace(scores=ring, score_mask=ring_mask, audio_balance=balance)
    return state, (salience_order(scores, mask) < count) & mask


def guidance(
    audio_keep: Bool[Array, " A"],
    audio_mask: Bool[Array, " A"],
    video_slots: int,
    config: StreamedOmniZip,
) -> Float[Array, ""]:
    """Rate of a window's video by eq. 5, in units of the rate of a window of expected retention.

    The salient tokens keep their balance, so the mean retention is known without look-ahead. It is
    1 for a window without audio.
    """
    slots, (rho_audio, _) = audio_mask.size, nominal_rates(config, audio_mask.size, video_slots)
    expected = min(1 - rho_audio + anchor_count(config, slots) / slots, 1.0)
    retention = jnp.sum(audio_keep) / jnp.maximum(jnp.sum(audio_mask), 1)
    rate, mean = (
        jnp.maximum(initial_rates(x, config), 1e-6) for x in (retention, jnp.float32(expected))
    )
    return jnp.where(jnp.any(audio_mask), rate / mean, 1)


def discard_causal(
    state: CausalState,
    audio_keep: Bool[Array, " A"],
    audio_mask: Bool[Array, " A"],
    video_mask: Bool[Array, "G P"],
    config: StreamedOmniZip,
) -> tuple[CausalState, Int[Array, ""]]:
    """Video tokens that a window discards: ``guidance`` of its part, limited by the balance.

    The part of a window is ``rho_video`` of its tokens, inside ``[rho_min, rho_max]``; where no
    integer satisfies both the balance and the bounds, the rate exceeds a bound by less than one
    token. With ``keep`` it is what the audio leaves of the share of all its tokens, and a bound of
    the rate on the wrong side of it moves to the middle between it and no tokens, or all.
    """
    audio, tokens, kept = jnp.sum(audio_mask), jnp.sum(video_mask), jnp.sum(audio_keep)
    guide = guidance(audio_keep, audio_mask, video_mask.size, config)
    balance, unit = state.video_balance, discard_share(config).denominator
    if config.keep is None:
        low, high = as_fraction(config.rho_min), as_fraction(config.rho_max)
        target = nearest(guide * config.rho_video * tokens)
        inside = jnp.maximum(target, ceil_share(low, tokens))
        inside = jnp.minimum(inside, floor_share(high, tokens))
        least, most = balance.limits(unit)
        least = jnp.minimum(least, ceil_share(high, tokens))
        count = jnp.clip(inside, least, jnp.maximum(most, floor_share(low, tokens)))
    else:
        anchors = anchor_count(config, audio)
        salient = config.salient_target(audio, tokens, anchors)
        expected = jnp.minimum(jnp.clip(salient, 0, 1) * audio + anchors, audio)
        target = jnp.clip(tokens - (config.keep * (audio + tokens) - expected), 0, tokens)
        low, high = config.rho_min * tokens, config.rho_max * tokens
        low = jnp.where(target >= low, low, target / 2)
        high = jnp.where(target <= high, high, (target + tokens) / 2)
        count = nearest(jnp.clip(guide * target, low, high))
        balance = balance.subtract(audio - kept, unit)
        count = jnp.clip(count, *balance.limits(unit))
        most = kept_bound(config.keep, audio_mask.size, video_mask.size)
        count = jnp.clip(jnp.maximum(count, kept + tokens - most), 0, tokens)
    return state.replace(video_balance=balance.subtract(count, unit)), count


def discard_share(config: StreamedOmniZip) -> Fraction:
    """The share of the video tokens to discard; with ``keep``, of all tokens."""
    if config.keep is None:
        return as_fraction(config.rho_video, STREAM_DENOMINATOR)
    return 1 - as_fraction(config.keep, STREAM_DENOMINATOR)


def kept_bound(keep: float, audio_slots: int, video_slots: int) -> int:
    """The most tokens that a stream keeps of a window: its share and a quarter of its slots."""
    slots = audio_slots + video_slots
    return max(min(floor_share(as_fraction(keep), slots) + slots // 4, slots), audio_slots)
