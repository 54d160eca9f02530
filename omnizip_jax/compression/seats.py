"""SEATS (arXiv 2605.20035): a stage before the decoder, and four inside it.

Of every window and modality the tokens are chosen one by one, each as far as possible from those
chosen before, where distance counts for more the more attention a token receives.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.audio import pool_pairs, received_attention
from omnizip_jax.compression.budget import water_fill, whole_shares
from omnizip_jax.compression.counts import apportion, as_fraction, lookup, round_share
from omnizip_jax.compression.method import Counts, check_share
from omnizip_jax.compression.per_modality import ModalitySelection, PerModality, vision_of
from omnizip_jax.compression.rule import over_windows
from omnizip_jax.compression.share import RunningShare, most_at_once, split
from omnizip_jax.compression.similarity import cosines
from omnizip_jax.compression.stages import Stage, Tokens
from omnizip_jax.types import EncodedWindow, Selection, TokenKind

# Kept shares, in units of the target, of the stages that end after these of 28 layers; after the
# last one no media token is left. The mean over the layers is the target.
LAYERS = 28
LEVELS = ((16, 1.4), (18, 1.30), (20, 1.035), (23, 0.309), (28, 0.0))
FIRST = as_fraction(LEVELS[0][1])
TEMPERATURE = 0.1  # of the softmax over windows
GAP = 0.35  # target_audio - target_video of the published settings of 35, 25 and 15 %


def schedule(layers: int) -> tuple[tuple[int, float], ...]:
    """Up to which layer, counted from 1, which multiple of the target is kept, in any depth.

    In a shallow decoder several levels may end after one layer; the first one holds there.
    """
    out: dict[int, float] = {}
    for last, level in LEVELS:
        out.setdefault(max(1, round(last * layers / LAYERS)), level)
    return tuple(out.items())


@dataclasses.dataclass(frozen=True)
class Seats(PerModality):
    """SEATS: in every window ``round(1.4 target n)`` tokens of each modality.

    Weighted distances ``D_ij a_j`` with ``D_ij = 1 - cos`` of the embeddings and a_j the attention
    that token j receives inside the window, from the encoders' last block. The first token is the
    one farthest from its nearest neighbour, each next one ``argmax_j min_{i chosen} D_ij a_j``.

    Args:
        target_audio, target_video: kept shares, averaged over the decoder's layers; published are
            (0.65, 0.30), (0.55, 0.20), (0.45, 0.10) and (0.35, 0.06) for 35, 25, 15 and 10 %. With
            ``keep`` they lie 0.35 apart, and the layer average over all tokens is ``keep``.
        before_only: no stages inside the decoder; what is kept before it is the target itself.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"vision"})

    target_audio: float = 0.65
    target_video: float = 0.30
    before_only: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_share("Seats.target_audio", self.target_audio)
        check_share("Seats.target_video", self.target_video)

    @property
    def streams(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Without its stages, which need a question."""
        return self.before_only

    def stages(self, layers: int) -> tuple[Stage, ...]:
        if self.before_only:
            return ()
        return tuple(
            Seated(last, share=level / before)
            for (last, before), (_, level) in itertools.pairwise(self.levels(layers))
        )

    def levels(self, layers: int) -> tuple[tuple[int, float], ...]:
        """``schedule``; with ``keep`` the later levels are scaled until the mean is the target.

        Raises:
            ValueError: the layers without media leave less than ``keep``.
        """
        first, *later = schedule(layers)
        if not self.keep or not later:
            return (first, *later)
        kept = min(first[1], 1 / self.keep)
        ends = [first[0], *(last for last, _ in later)]
        rest = sum(level * (ends[i + 1] - ends[i]) for i, (_, level) in enumerate(later))
        scale = (layers - first[0] * kept) / rest
        if scale * later[0][1] > kept:
            most = (first[0] + rest / later[0][1]) / layers
            raise ValueError(
                f"SEATS lets all media go before the last layers: keep at most {most:.3f}, "
                f"got {self.keep}"
            )
        return ((first[0], kept), *((last, level * scale) for last, level in later))

    def first(self, target: float, counts: np.ndarray) -> np.ndarray:
        """Tokens that stage I keeps of windows with so many, at least one."""
        kept = np.asarray(round_share(self.factor * as_fraction(target), counts))
        return np.clip(kept, np.minimum(counts, 1), counts)

    @property
    def factor(self) -> Fraction:
        """What stage I keeps, in units of the target."""
        return Fraction(1) if self.before_only else FIRST

    def kept(self, tokens, slots):
        return lookup(self._kept, tokens, slots)

    def kept_on_host(self, audio_counts, video_counts):
        return int(self._kept(np.sum(audio_counts) + np.sum(video_counts)))

    def _kept(self, tokens):
        assert self.keep is not None
        return np.minimum(round_share(self.factor * as_fraction(self.keep), tokens), tokens)

    def choose_share(self, windows, total, key):
        sizes = jnp.sum(windows.audio.token_mask), jnp.sum(windows.video_mask)
        audio = split(total, *sizes, gap=float(self.factor) * GAP)
        return self.choose(windows, audio, total - audio, key)

    def counts(self, windows):
        audio, video = windows.audio.token_mask, windows.video_mask.reshape(len(windows.video), -1)
        return (
            jnp.sum(self.of_windows(audio, self.target_audio)),
            jnp.sum(self.of_windows(video, self.target_video)),
        )

    def of_windows(self, mask: Bool[Array, "W n"], target: float) -> Int[Array, " W"]:
        return lookup(partial(self.first, target), jnp.sum(mask, -1), mask.shape[-1])

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """Exact."""
        if self.keep is not None:
            return self.kept_on_host(audio_counts, video_counts)
        audio = self.first(self.target_audio, np.asarray(audio_counts))
        video = self.first(self.target_video, np.asarray(video_counts))
        return int(audio.sum() + video.sum())

    def sound(self, windows, count, key):
        audio = windows.audio

        def one(queries, keys, frames, tokens, mask, kept):
            total = received_attention(queries, frames, keys, frames)
            return spread(tokens, mask, pool_pairs(total, frames), kept)

        kept = self.per_window(audio.token_mask, self.target_audio, count)
        heard = audio.queries, audio.keys, audio.frame_mask, audio.tokens, audio.token_mask
        place = over_windows(one, *heard, kept)
        return ModalitySelection(
            (place < kept[:, None]) & audio.token_mask, -place.astype(jnp.float32)
        )

    def picture(self, windows, count, key, audio_keep):
        vision = vision_of(windows)
        shape = windows.video_mask.shape
        mask = windows.video_mask.reshape(shape[0], -1)
        video = windows.video.reshape(*mask.shape, -1)
        kept = self.per_window(mask, self.target_video, count)
        place = over_windows(spread, video, mask, vision.received.reshape(mask.shape), kept)
        keep = (place < kept[:, None]) & mask
        return ModalitySelection(keep.reshape(shape), -place.reshape(shape).astype(jnp.float32))

    def per_window(
        self, mask: Bool[Array, "W n"], target: float, count: Int[Array, ""]
    ) -> Int[Array, " W"]:
        """``count`` tokens over the windows: by the target if that is its sum, or in proportion."""
        own = self.of_windows(mask, target)
        return jnp.where(jnp.sum(own) == count, own, apportion(count, jnp.sum(mask, -1)))

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        if self.keep is not None:
            share = min(self.factor * as_fraction(self.keep), Fraction(1))
            return most_at_once(share, audio_slots + video_slots)
        return self.bound(np.array([audio_slots]), np.array([video_slots]))

    def begin(self, window: EncodedWindow) -> RunningShare:
        return RunningShare.even() if self.streams else super().begin(window)

    def step(
        self, state: RunningShare, window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[RunningShare, Selection]:
        clip = jax.tree.map(lambda x: x[None], window)
        if self.keep is None:
            chosen = self.choose(clip, *self.counts(clip), key)
        else:
            share = min(self.factor * as_fraction(self.keep), Fraction(1))
            tokens = jnp.sum(window.audio.token_mask) + jnp.sum(window.video_mask)
            state, total = state.advance(tokens, share)
            chosen = self.choose_share(clip, total, key)
        return state, jax.tree.map(lambda x: x[0], chosen)


def spread(
    tokens: Float[Array, "n D"],
    mask: Bool[Array, " n"],
    received: Float[Array, " n"],
    count: Int[Array, ""],
) -> Int[Array, " n"]:
    """When each token is chosen, 0 first; at least n for those that are not.

    Args:
        received: attention, the weight of each token's distances.
        count: tokens to choose.
    """
    distance = jnp.maximum(1 - cosines(tokens, tokens), 0)
    distance = jnp.where(jnp.eye(mask.size, dtype=bool), 0, distance) * received
    distance = jnp.where(mask[:, None], distance, jnp.inf)  # to token j, from each that exists
    nearest = jnp.where(jnp.eye(mask.size, dtype=bool), jnp.inf, distance).min(0)

    def choose(step, state):
        place, score = state
        free = mask & (place >= mask.size)
        chosen = jnp.argmax(jnp.where(free, score, -jnp.inf))
        # After the first the score is the distance to those chosen, no longer to the nearest.
        score = jnp.where(step == 0, distance[chosen], jnp.minimum(score, distance[chosen]))
        return place.at[chosen].set(step), score

    place = jnp.full(mask.size, mask.size, jnp.int32)
    return jax.lax.fori_loop(0, count, choose, (place, nearest))[0]


@dataclasses.dataclass(frozen=True)
class Seated(Stage):
    """Stages II and III of SEATS: some of the media tokens stay, or none.

    The next layer's own norm and projections say what the last token would attend to. ``share`` of
    the tokens of each modality stay, over the windows in proportion to the softmax of the windows'
    mean scores / 0.1; in a window those with the highest scores, and one at least as far as the
    count allows. Keys and values of earlier layers leave with their tokens.
    """

    share: float = 1.0
    ahead: bool = True
    prunes_past: bool = True

    def bound(self, text: int, media: int) -> int:
        # How many of them are sound is not known; two counts were rounded.
        kept = round_share(as_fraction(self.share), np.asarray(media))
        return text + min(int(kept) + 2 * (self.share > 0), media)

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        scores, media = jnp.mean(attention, axis=0), tokens.media
        stays = ~media
        if self.share == 0:
            return stays
        window = jnp.where(media, tokens.window, tokens.windows)

        def per_window(values: Array) -> Array:
            values = values.astype(jnp.promote_types(values.dtype, jnp.int32))
            return jax.ops.segment_sum(values, window, num_segments=tokens.windows)

        mean = per_window(jnp.where(media, scores, 0)) / jnp.maximum(per_window(media), 1)
        weight = jax.nn.softmax(jnp.where(per_window(media) > 0, mean / TEMPERATURE, -jnp.inf))
        for kind in (TokenKind.AUDIO, TokenKind.VIDEO):
            these = media & (tokens.kind == kind)
            sizes = per_window(these)
            total = lookup(
                partial(round_share, as_fraction(self.share)), jnp.sum(sizes), media.size
            )
            counts = over_groups(total, jnp.maximum(weight, 1e-6), sizes)
            stays |= these & (place_in_group(scores, these, window) < counts[window])
        return stays


def over_groups(
    total: Int[Array, ""], weight: Float[Array, " W"], sizes: Int[Array, " W"]
) -> Int[Array, " W"]:
    """``total`` tokens over groups in proportion to weights: one at least, as many as there are."""
    least = jnp.where(jnp.sum(sizes > 0) <= total, jnp.minimum(sizes, 1), 0)
    shares = water_fill(weight, 1.0 * least, 1.0 * sizes, 1.0 * total)
    return whole_shares(shares, sizes, total)


def place_in_group(
    scores: Float[Array, " T"], valid: Bool[Array, " T"], group: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Place of every valid token in its group's order of scores, 0 for the highest."""
    in_order = jnp.lexsort((-scores, jnp.where(valid, group, valid.size)))
    sorted_group = group[in_order]
    place = jnp.arange(valid.size)
    begins = jnp.searchsorted(jnp.where(valid[in_order], sorted_group, valid.size), sorted_group)
    return jnp.zeros(valid.size, jnp.int32).at[in_order].set((place - begins).astype(jnp.int32))
