"""SEATS (arXiv 2605.20035): a selection before the decoder, and four stages inside it.

Tokens of every window and modality are selected one by one, each as far as possible from those
selected before; distances are weighted by the attention that a token receives.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import (
    apportion,
    as_fraction,
    round_share,
    running_share_bound,
)
from omnizip_jax.compression.decoder_stages import Stage, Tokens, scaled_layer
from omnizip_jax.compression.method import Budget, Count, check_shares
from omnizip_jax.compression.omnizip_audio import pool_frames, received_attention
from omnizip_jax.compression.omnizip_budget import water_fill, whole_shares
from omnizip_jax.compression.omnizip_video import over_windows
from omnizip_jax.compression.per_modality import ModalitySelection, PerModality, vision_of
from omnizip_jax.compression.similarity import cosine_distances
from omnizip_jax.types import TokenKind

# Kept shares, in units of the target, up to each of these layers of 28; after the last stage no
# media token is left. The mean over the layers is the target.
LEVELS = ((16, 1.4), (18, 1.30), (20, 1.035), (23, 0.309), (28, 0.0))
FIRST = as_fraction(LEVELS[0][1])
TEMPERATURE = 0.1  # of the softmax over windows
GAP = 0.35  # target_audio - target_video of the published settings of 35, 25 and 15 %


def schedule(layers: int) -> tuple[tuple[int, float], ...]:
    """Last layer, counted from 1, and kept multiple of the target of each level, for any depth.

    In a shallow decoder several levels may end after one layer; the first one applies there.
    """
    out: dict[int, float] = {}
    for last, level in LEVELS:
        out.setdefault(scaled_layer(last, layers), level)
    return tuple(out.items())


@dataclasses.dataclass(frozen=True)
class Seats(PerModality):
    """SEATS: ``round(1.4 target n)`` of n tokens of each window and modality.

    Weighted distances ``D_ij a_j`` with ``D_ij = 1 - cos`` of the embeddings and a_j the attention
    that token j receives inside the window, from the encoders' last block. The first token is the
    one farthest from its nearest neighbour, each next one ``argmax_j min_{i selected} D_ij a_j``.

    Args:
        target_audio, target_video: kept shares, averaged over the decoder's layers; published are
            (0.65, 0.30), (0.55, 0.20), (0.45, 0.10) and (0.35, 0.06) for 35, 25, 15 and 10 %. With
            ``keep`` and ``split="paper"`` they differ by 0.35, and the mean over the layers is
            ``keep``.
        before_only: no stages inside the decoder; the target itself is kept before it.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"vision"})

    target_audio: float = 0.65
    target_video: float = 0.30
    before_only: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "target_audio", "target_video")

    @property
    def streams(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Without its stages, which need a question."""
        return self.before_only

    def stages(self, layers: int) -> tuple[Stage, ...]:
        if self.before_only:
            return ()
        return tuple(
            SeatsStage(last, share=level / before)
            for (last, before), (_, level) in itertools.pairwise(self.levels(layers))
        )

    def levels(self, layers: int) -> tuple[tuple[int, float], ...]:
        """``schedule``; with ``keep`` the later levels are scaled until the mean is the target.

        Raises:
            ValueError: the layers without media leave less than ``keep``, or the decoder is too
                shallow for a level that could be scaled.
        """
        first, *later = schedule(layers)
        if not self.keep:
            return (first, *later)
        kept = min(first[1], 1 / self.keep)
        ends = [first[0], *(last for last, _ in later)]
        rest = sum(level * (ends[i + 1] - ends[i]) for i, (_, level) in enumerate(later))
        if not rest:
            raise ValueError(
                f"SEATS cannot hold keep={self.keep} in a decoder of {layers} layers, which has no "
                "levels after its first: give target_audio and target_video, or before_only=True"
            )
        scale = (layers - first[0] * kept) / rest
        if scale * later[0][1] > kept:
            most = (first[0] + rest / later[0][1]) / layers
            raise ValueError(
                f"SEATS lets all media go before the last of {layers} layers: keep at most "
                f"{most:.3f}, got {self.keep}"
            )
        return ((first[0], kept), *((last, level * scale) for last, level in later))

    @property
    def factor(self) -> Fraction:
        """Kept share before the decoder, in units of the target."""
        return Fraction(1) if self.before_only else FIRST

    @property
    def kept_share(self) -> Fraction:
        return min(self.factor * super().kept_share, Fraction(1))

    @property
    def gap(self) -> float:
        return float(self.factor) * GAP

    @property
    def one_share(self) -> bool:
        return self.keep is not None

    def window_counts(self, target: float, counts: Any) -> Any:
        """Kept tokens of windows with ``counts`` tokens, at least one; host or device."""
        kept = round_share(self.factor * as_fraction(target), counts)
        return kept.clip(counts > 0, counts)

    def own_budget(self, audio_counts, video_counts):
        audio = self.window_counts(self.target_audio, np.asarray(audio_counts))
        video = self.window_counts(self.target_video, np.asarray(video_counts))
        return Budget.of(audio.sum(), video.sum())

    def step_counts(self, shares, audio, video):
        audio = self.window_counts(self.target_audio, audio)
        return shares, Budget.of(audio, self.window_counts(self.target_video, video))

    def select_audio(self, windows, count, key):
        audio = windows.audio

        def one(queries, keys, frames, tokens, mask, kept):
            received = received_attention(queries, frames, keys, frames)
            received = pool_frames(received, frames, mask.size)
            return farthest_first(tokens, mask, received, kept)

        kept = self.per_window(audio.token_mask, self.target_audio, count)
        arrays = audio.queries, audio.keys, audio.frame_mask, audio.tokens, audio.token_mask
        rank = over_windows(one, *arrays, kept)
        return ModalitySelection((rank < kept[:, None]) & audio.token_mask)

    def select_video(self, windows, count, key, audio_keep):
        vision = vision_of(windows)
        shape = windows.video_mask.shape
        mask = windows.video_mask.reshape(shape[0], -1)
        video = windows.video.reshape(*mask.shape, -1)
        kept = self.per_window(mask, self.target_video, count)
        received = vision.received.reshape(mask.shape)
        rank = over_windows(farthest_first, video, mask, received, kept)
        return ModalitySelection(((rank < kept[:, None]) & mask).reshape(shape))

    def per_window(self, mask: Bool[Array, "W n"], target: float, count: Count) -> Int[Array, " W"]:
        """Divide ``count`` over the windows: by the target if that is its sum, or in proportion."""
        sizes = jnp.sum(mask, -1)
        own = self.window_counts(target, sizes)
        return jnp.where(jnp.sum(own) == count, own, apportion(count, sizes))

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        if self.keep is not None:
            return running_share_bound(self.kept_share, audio_slots + video_slots)
        return self.plan(np.array([audio_slots]), np.array([video_slots])).total


def farthest_first(
    tokens: Float[Array, "n D"],
    mask: Bool[Array, " n"],
    received: Float[Array, " n"],
    count: Int[Array, ""] | int,
) -> Int[Array, " n"]:
    """Rank of each token in the order of selection, 0 first; at least n for those not selected.

    Args:
        received: attention, the weight of each token's distances.
        count: tokens to select.
    """
    distance = cosine_distances(tokens) * received
    distance = jnp.where(mask[:, None], distance, jnp.inf)  # to token j, from each that exists
    nearest = jnp.where(jnp.eye(mask.size, dtype=bool), jnp.inf, distance).min(0)

    def select(step, state):
        rank, score = state
        free = mask & (rank >= mask.size)
        best = jnp.argmax(jnp.where(free, score, -jnp.inf))
        # From the second token on the score is the distance to those selected.
        score = jnp.where(step == 0, distance[best], jnp.minimum(score, distance[best]))
        return rank.at[best].set(step), score

    rank = jnp.full(mask.size, mask.size, jnp.int32)
    return jax.lax.fori_loop(0, count, select, (rank, nearest))[0]


@dataclasses.dataclass(frozen=True)
class SeatsStage(Stage):
    """Stages II and III of SEATS: keep some of the media tokens, or none.

    Scores are the attention that the last token would have in the next layer. ``share`` of the
    tokens of each modality is kept, divided over the windows in proportion to the softmax of the
    windows' mean scores / 0.1; in a window those with the highest scores, and at least one as far
    as the count allows. Keys and values of earlier layers are discarded with their tokens.
    """

    share: float = 1.0
    ahead: bool = True
    prunes_past: bool = True

    def bound(self, text: int, media: int) -> int:
        # The number of audio tokens among them is not known; two counts were rounded.
        kept = round_share(as_fraction(self.share), media)
        return text + min(kept + 2 * (self.share > 0), media)

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        scores, media = jnp.mean(attention, axis=0), tokens.media
        keep = ~media
        if self.share == 0:
            return keep
        window = jnp.where(media, tokens.window, tokens.windows)

        def per_window(values: Array) -> Array:
            values = values.astype(jnp.promote_types(values.dtype, jnp.int32))
            return jax.ops.segment_sum(values, window, num_segments=tokens.windows)

        mean = per_window(jnp.where(media, scores, 0)) / jnp.maximum(per_window(media), 1)
        weight = jax.nn.softmax(jnp.where(per_window(media) > 0, mean / TEMPERATURE, -jnp.inf))
        for kind in (TokenKind.AUDIO, TokenKind.VIDEO):
            members = media & (tokens.kind == kind)
            sizes = per_window(members)
            total = round_share(as_fraction(self.share), jnp.sum(sizes))
            counts = over_groups(total, jnp.maximum(weight, 1e-6), sizes)
            keep |= members & (rank_in_group(scores, members, window) < counts[window])
        return keep


def over_groups(
    total: Int[Array, ""], weight: Float[Array, " W"], sizes: Int[Array, " W"]
) -> Int[Array, " W"]:
    """Divide ``total`` tokens over groups in proportion to weights, at least one for each."""
    least = jnp.where(jnp.sum(sizes > 0) <= total, jnp.minimum(sizes, 1), 0)
    shares = water_fill(weight, 1.0 * least, 1.0 * sizes, 1.0 * total)
    return whole_shares(shares, sizes, total)


def rank_in_group(
    scores: Float[Array, " T"], valid: Bool[Array, " T"], group: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Rank of every valid token in its group's order of scores, 0 for the highest."""
    in_order = jnp.lexsort((-scores, jnp.where(valid, group, valid.size)))
    sorted_group = group[in_order]
    place = jnp.arange(valid.size)
    begins = jnp.searchsorted(jnp.where(valid[in_order], sorted_group, valid.size), sorted_group)
    return jnp.zeros(valid.size, jnp.int32).at[in_order].set((place - begins).astype(jnp.int32))
