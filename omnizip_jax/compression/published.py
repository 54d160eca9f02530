"""Where the authors' newest code differs from the paper's rule, for comparable numbers.

Anchors and merging run over the whole clip, windows are what touches in the prompt, video rates are
normalised in one approximate pass, DPC-KNN measures 1 - cosine, and every grid rounds its own count
down. Written from a description
of that code (github.com/KD-TAO/OmniZip), for windows; everything not here is shared with the
paper's rule.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.audio import (
    cross_modal_similarity,
    merge_into_anchors,
    sample_anchors,
    select_salient,
)
from omnizip_jax.compression.budget import initial_rates
from omnizip_jax.compression.counts import lookup, salience_order
from omnizip_jax.compression.method import Counts
from omnizip_jax.compression.rule import Rule, over_windows
from omnizip_jax.compression.settings import Settings
from omnizip_jax.compression.similarity import cosines
from omnizip_jax.compression.video import density_peaks, novelty, previous
from omnizip_jax.types import WindowTokens


@dataclasses.dataclass(frozen=True)
class PublishedOmniZip(Rule):
    """The rule of the authors' newest code, quirks included; the settings are the paper's.

    Its budget slips, by up to 14 points on short clips (docs/rules.md), so it cannot hold ``keep``.

    Raises:
        ValueError: a setting of the wrong type or outside its range, or ``keep``.
    """

    keep: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.keep is not None:
            raise ValueError(
                "PublishedOmniZip cannot hold a share of all tokens, for its rates may miss their "
                "budget: set rho_audio and rho_video, or take OmniZipConfig(keep=...)"
            )

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """The rates are not known beforehand: with sound, up to ``1 - rho_min`` of the video."""
        audio = np.sum(audio_counts)
        salient = round_float(1 - self.rho_audio, audio)
        anchors = round_float(self.anchor_ratio, audio) if self.merge_size else 0
        rate = min(self.rho_min, self.rho_video) if audio else self.rho_video
        kept_video = floor_float(1 - rate, np.asarray(video_counts)).sum()
        return int(min(salient + anchors, audio) + kept_video)

    def salient(self, tokens):
        mask = tokens.audio_mask
        count = lookup(partial(round_float, 1 - self.rho_audio), jnp.sum(mask), mask.size)
        return select_salient(tokens.audio_scores, mask, count)

    def consolidate(self, tokens, salient):
        return consolidate_clip(tokens, salient, self)

    def grid_keeps(self, audio_keep, audio_counts, grid_counts, slots):
        video_counts = jnp.sum(grid_counts, -1)
        of_audio, of_video = runs(audio_counts, video_counts)

        def of_runs(counts, run):
            return jax.ops.segment_sum(counts, run, num_segments=run.size)

        heard, seen = of_runs(audio_counts, of_audio), of_runs(video_counts, of_video)
        retention = of_runs(jnp.sum(audio_keep, -1), of_audio) / jnp.maximum(heard, 1)
        rates = video_rates(retention, heard, seen, self)
        return grid_keeps(rates[of_video], heard[of_video], grid_counts, self, slots)

    def choose_video(self, video, mask, kept, audio_counts):
        grids, masks = video.reshape(-1, *video.shape[2:]), mask.reshape(-1, mask.shape[-1])
        _, of_video = runs(audio_counts, jnp.sum(mask, (1, 2)))
        exists = masks.any(-1)
        before, place = previous(exists), places(exists, jnp.repeat(of_video, mask.shape[1]))

        def order(index):
            grid, valid, last = grids[index], masks[index], before[index]
            scores = jax.lax.cond(
                place[index] % 2 == 1,
                lambda: novelty(grid, grids[last], masks[last]),
                lambda: dpc_knn(grid, valid, self.knn),
            )
            return salience_order(scores, valid)

        found = over_windows(order, jnp.arange(len(grids))).reshape(mask.shape)
        return (found < kept[..., None]) & mask, found


def runs(
    audio_counts: Int[Array, " W"], video_counts: Int[Array, " W"]
) -> tuple[Int[Array, " W"], Int[Array, " W"]]:
    """The run of audio tokens, and the run of video tokens, that each window's belong to.

    The code sees no windows, only which tokens of the prompt touch: each window's video, then its
    audio. When one modality ends, what remains of the other touches and forms one run: sound that
    outlasts the picture joins the last run of sound; picture that outlasts the sound is a run of
    its own after the last sound. The i-th runs of both belong together; a run of video without one
    is not guided.
    """
    exists = jnp.stack([video_counts, audio_counts], axis=1).reshape(-1) > 0
    sound = jnp.arange(exists.size) % 2
    before = previous(exists)
    starts = exists & ((before < 0) | (sound[before] != sound))
    run = jnp.maximum(jnp.cumsum(starts.reshape(-1, 2), axis=0) - 1, 0)
    return run[:, 1], run[:, 0]


def places(exists: Bool[Array, " n"], run: Int[Array, " n"]) -> Int[Array, " n"]:
    """Place of every grid in its run, among those that exist."""
    count = jnp.cumsum(exists) - exists
    first = jax.ops.segment_min(jnp.where(exists, count, exists.size), run, exists.size)
    return count - first[run]


def round_float(share: float, counts: np.ndarray) -> np.ndarray:
    """Python's ``round(share * count)`` of float64 products."""
    return np.rint(share * counts).astype(int)


def floor_float(share: float | np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Python's ``int(count * share)`` of float64 products."""
    return np.floor(share * counts).astype(int)


def consolidate_clip(
    tokens: WindowTokens, salient: Bool[Array, "W A"], config: Settings
) -> tuple[Float[Array, "W A D"], Bool[Array, "W A"]]:
    """Audio anchors spread over the clip; candidates compared with all video of the clip.

    Returns:
        The audio with merged anchors, and the mask of the anchors.
    """
    width, anchor_rule = tokens.audio.shape[-1], partial(round_float, config.anchor_ratio)
    slots = int(anchor_rule(np.array(tokens.audio_mask.size)))
    if config.merge_size == 0 or slots == 0:
        return tokens.audio, jnp.zeros_like(salient)
    audio, mask = tokens.audio.reshape(-1, width), tokens.audio_mask.reshape(-1)
    others = mask & ~salient.reshape(-1)
    count = lookup(anchor_rule, jnp.sum(mask), mask.size)
    anchor, filled, anchors = sample_anchors(others, count, slots)
    candidates = others & ~anchors

    # Every candidate meets every video token of the clip, so only candidates are packed for it.
    counts = np.arange(mask.size + 1)
    spare = counts - round_float(1 - config.rho_audio, counts) - anchor_rule(counts)
    (packed,) = jnp.nonzero(candidates, size=max(int(spare.max()), 1), fill_value=0)
    features = audio[packed]

    def nearest(best, window):
        video, video_mask = (x.reshape(-1, *x.shape[2:]) for x in window)
        return jnp.maximum(best, cross_modal_similarity(features, video, video_mask)), None

    start = jnp.full(packed.size, -jnp.inf, jnp.promote_types(audio.dtype, jnp.float32))
    best, _ = jax.lax.scan(nearest, start, (tokens.video, tokens.video_mask))
    relevance = jnp.full(mask.size, -jnp.inf, best.dtype).at[packed].set(best)
    audio = merge_into_anchors(audio, candidates, relevance, anchor, filled, config.merge_size)
    return audio.reshape(tokens.audio.shape), anchors.reshape(salient.shape)


def video_rates(
    retention: Float[Array, " W"],
    audio_counts: Int[Array, " W"],
    video_counts: Int[Array, " W"],
    config: Settings,
) -> Float[Array, " W"]:
    """Share of each run's video to discard; the budget is met only roughly.

    Runs without audio have the rate ``rho_video``. With one or two runs that have both, the rates
    of eq. 5 stay as they are. With more, the first run with the lowest rate and the first with the
    highest keep theirs, the others are scaled towards the budget, clipped, corrected once by a
    constant and clipped again. Where all rates are equal, one run is the lowest and the highest
    and counts twice.
    """
    guided = (audio_counts > 0) & (video_counts > 0)
    weight = jnp.where(guided, video_counts, 0)
    clip = partial(jnp.clip, min=config.rho_min, max=config.rho_max)
    initial = clip(initial_rates(retention, config))

    target = config.rho_video * jnp.sum(weight)
    lowest = jnp.argmin(jnp.where(guided, initial, jnp.inf))
    highest = jnp.argmax(jnp.where(guided, initial, -jnp.inf))
    fixed = initial[lowest] * weight[lowest] + initial[highest] * weight[highest]
    index = jnp.arange(initial.size)
    free = guided & (index != lowest) & (index != highest)

    free_share = jnp.sum(jnp.where(free, initial * weight, 0))
    scale = (target - fixed) / jnp.where(free_share > 0, free_share, 1)
    scaled = jnp.where(free, clip(initial * scale), initial)
    missing = target - jnp.sum(scaled * weight)
    free_weight = jnp.maximum(jnp.sum(jnp.where(free, weight, 0)), 1)
    corrected = jnp.where(free, clip(scaled + missing / free_weight), scaled)

    off_budget = jnp.abs(jnp.sum(initial * weight) - target) > 1e-3
    normalise = (jnp.sum(guided) > 2) & off_budget
    rates = jnp.where(normalise, corrected, initial)
    return jnp.where(guided, rates, config.rho_video)


def grid_keeps(
    rates: Float[Array, " W"],
    audio_counts: Int[Array, " W"],
    grid_counts: Int[Array, "W G"],
    config: Settings,
    slots: int,
) -> Int[Array, "W G"]:
    """``floor(tokens * (1 - rate))`` for every grid.

    Rates that are settings are looked up as float64 gives them; to the others a margin is added
    that float32 needs so as not to fall below an integer.
    """

    def setting(rate):
        return lookup(partial(floor_float, 1 - rate), grid_counts, slots)

    rates = rates[:, None]
    kept = jnp.floor(grid_counts * (1 - rates) + 1e-4).astype(jnp.int32)
    kept = jnp.where(
        rates == jnp.asarray(config.rho_max, rates.dtype), setting(config.rho_max), kept
    )
    kept = jnp.where(
        rates == jnp.asarray(config.rho_min, rates.dtype), setting(config.rho_min), kept
    )
    return jnp.where((audio_counts > 0)[:, None], kept, setting(config.rho_video))


def dpc_knn(grid: Float[Array, "P D"], mask: Bool[Array, " P"], knn: int) -> Float[Array, " P"]:
    """DPC-KNN in log space with distance 1 - cosine; the density averages it unsquared."""
    distance = jnp.maximum(1 - cosines(grid, grid), 0)
    distance = jnp.where(jnp.eye(mask.size, dtype=bool), 0, distance)
    return density_peaks(distance, distance, mask, knn)
