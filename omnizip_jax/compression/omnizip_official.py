"""The rule of the authors' newest code where it differs from the paper's, for comparable numbers.

Anchors and merging use the whole clip, windows are runs of adjacent tokens in the prompt, video
rates are normalised in one approximate pass, DPC-KNN measures 1 - cosine, and every grid rounds its
own count down. Written from a description of that code (github.com/KD-TAO/OmniZip), for windows;
everything else is shared with the paper's rule.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import salience_order, top_mask
from omnizip_jax.compression.method import Budget, Count, Counts
from omnizip_jax.compression.omnizip_audio import (
    cross_modal_similarity,
    merge_into_anchors,
    sample_anchors,
)
from omnizip_jax.compression.omnizip_budget import initial_rates
from omnizip_jax.compression.omnizip_steps import OmniZipSettings, compress_clip, with_scores
from omnizip_jax.compression.omnizip_video import (
    density_peaks,
    novelty,
    over_indices,
    place_in_run,
    previous,
    scan_windows,
)
from omnizip_jax.compression.similarity import cosine_distances
from omnizip_jax.types import Selection, WindowTokens


@dataclasses.dataclass(frozen=True)
class PublishedOmniZip(OmniZipSettings):
    """The rule of the authors' newest code, quirks included; the settings are the paper's.

    It has no ``keep``: its rates miss their budget by up to 14 points on short clips
    (docs/rules.md).
    """

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """An upper limit: windows with audio keep up to ``1 - rho_min`` of their video."""
        audio = np.sum(audio_counts)
        salient = round_float(1 - self.rho_audio, audio)
        anchors = round_float(self.anchor_ratio, audio) if self.merge_size else 0
        anchors = min(anchors, audio - salient)
        rate = min(self.rho_min, self.rho_video) if audio else self.rho_video
        video = floor_float(1 - rate, np.asarray(video_counts)).sum()
        budget = Budget.of(salient + anchors, video)
        return budget._replace(anchors=anchors).as_ints()

    def select(self, windows, budget, key):
        """Compress as if each run of video and audio in the prompt were a window."""
        tokens, runs = with_scores(windows, windows.score_windows), windows.runs
        parts = jax.tree.map(lambda x: x.reshape(-1, x.shape[1] // runs, *x.shape[2:]), tokens)
        found = compress_clip(parts, budget, self)
        assert found.audio is not None
        masks = tokens.audio_mask, tokens.video_mask
        return Selection.of(
            *masks,
            found.audio_keep.reshape(masks[0].shape),
            found.video_keep.reshape(masks[1].shape),
            audio=found.audio.reshape(tokens.audio.shape),
            audio_salient=found.audio_salient.reshape(masks[0].shape),
        )

    def compress_audio(self, tokens, budget):
        count = budget.audio - budget.anchors
        salient = top_mask(tokens.audio_scores, tokens.audio_mask, count)
        audio, anchors = consolidate_clip(tokens, salient, budget.anchors, self)
        return audio, salient, anchors

    def compress_video(self, tokens, budget, audio_keep):
        mask = tokens.video_mask
        audio_counts, grid_counts = jnp.sum(tokens.audio_mask, -1), jnp.sum(mask, -1)
        video_counts = jnp.sum(grid_counts, -1)
        audio_run, video_run = runs(audio_counts, video_counts)

        def total(counts, run):
            return jax.ops.segment_sum(counts, run, num_segments=run.size)

        audio, video = total(audio_counts, audio_run), total(video_counts, video_run)
        retention = total(jnp.sum(audio_keep, -1), audio_run) / jnp.maximum(audio, 1)
        rates = video_rates(retention, audio, video, self)
        kept = grid_keeps(
            rates[video_run], audio[video_run], grid_counts, self, slots=mask.shape[-1]
        )

        grids = tokens.video.reshape(-1, *tokens.video.shape[2:])
        masks = mask.reshape(-1, mask.shape[-1])
        exists = masks.any(-1)
        other = previous(exists)
        place = place_in_run(exists, jnp.repeat(video_run, mask.shape[1]))

        def order(grids, index):
            grid, valid, last = grids[index], masks[index], other[index]
            scores = jax.lax.cond(
                place[index] % 2 == 1,
                lambda: novelty(grid, grids[last], masks[last]),
                lambda: dpc_knn(grid, valid, self.knn),
            )
            return salience_order(scores, valid)

        ranks = over_indices(order, len(grids), grids).reshape(mask.shape)
        return (ranks < kept[..., None]) & mask


def runs(
    audio_counts: Int[Array, " W"], video_counts: Int[Array, " W"]
) -> tuple[Int[Array, " W"], Int[Array, " W"]]:
    """The run of audio tokens and the run of video tokens of each window.

    The authors' code has no windows, only runs of adjacent tokens of one modality in the prompt:
    each window's video, then its audio. After one modality ends, the rest of the other is one run:
    audio that outlasts the video joins the last audio run; video that outlasts the audio is a run
    of its own after the last audio. The i-th runs of both belong together; a video run without an
    audio run is not guided.
    """
    exists = jnp.stack([video_counts, audio_counts], axis=1).reshape(-1) > 0
    is_audio = jnp.arange(exists.size) % 2
    other = previous(exists)
    starts = exists & ((other < 0) | (is_audio[other] != is_audio))
    run = jnp.maximum(jnp.cumsum(starts.reshape(-1, 2), axis=0) - 1, 0)
    return run[:, 1], run[:, 0]


def round_float(share: float, counts: np.ndarray) -> np.ndarray:
    """Python's ``round(share * count)`` of float64 products."""
    return np.rint(share * counts).astype(int)


def floor_float(share: float | np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Python's ``int(count * share)`` of float64 products."""
    return np.floor(share * counts).astype(int)


def consolidate_clip(
    tokens: WindowTokens, salient: Bool[Array, "W A"], count: Count, config: OmniZipSettings
) -> tuple[Float[Array, "W A D"], Bool[Array, "W A"]]:
    """Consolidate ``count`` anchors over the clip; candidates are compared with all its video.

    Returns:
        The audio with merged anchors, and the mask of the anchors.
    """
    width = tokens.audio.shape[-1]
    counts = np.arange(tokens.audio_mask.size + 1)
    anchor_counts = round_float(config.anchor_ratio, counts)
    slots = int(anchor_counts[-1])
    if config.merge_size == 0 or slots == 0:
        return tokens.audio, jnp.zeros_like(salient)
    audio, mask = tokens.audio.reshape(-1, width), tokens.audio_mask.reshape(-1)
    others = mask & ~salient.reshape(-1)
    anchor, filled, anchors = sample_anchors(others, count, slots)
    candidates = others & ~anchors

    # Candidates are packed, because each is compared with every video token of the clip.
    spare = counts - round_float(1 - config.rho_audio, counts) - anchor_counts
    (packed,) = jnp.nonzero(candidates, size=max(int(spare.max()), 1), fill_value=0)
    features = audio[packed]

    def nearest(best, *window):
        video, video_mask = (x.reshape(-1, *x.shape[2:]) for x in window)
        return jnp.maximum(best, cross_modal_similarity(features, video, video_mask))

    start = jnp.full(packed.size, -jnp.inf, jnp.promote_types(audio.dtype, jnp.float32))
    best = scan_windows(nearest, start, tokens.video, tokens.video_mask)
    relevance = jnp.full(mask.size, -jnp.inf, best.dtype).at[packed].set(best)
    audio = merge_into_anchors(audio, candidates, relevance, anchor, filled, config.merge_size)
    return audio.reshape(tokens.audio.shape), anchors.reshape(salient.shape)


def video_rates(
    retention: Float[Array, " W"],
    audio_counts: Int[Array, " W"],
    video_counts: Int[Array, " W"],
    config: OmniZipSettings,
) -> Float[Array, " W"]:
    """Share of each run's video to discard; the budget is met only roughly.

    Runs without audio have the rate ``rho_video``. With one or two runs that have both, the rates
    of eq. 5 are not changed. With more, the first run with the lowest rate and the first with the
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
    config: OmniZipSettings,
    slots: int,
) -> Int[Array, "W G"]:
    """``floor(tokens * (1 - rate))`` for every grid.

    The authors' code multiplies in float64. Its products with rates that are settings are tabulated
    for 0 to ``slots`` tokens; the others get the margin that keeps float32 from falling below an
    integer.
    """

    def setting(rate):
        table = floor_float(1 - rate, np.arange(slots + 1))
        return jnp.asarray(table, jnp.int32)[grid_counts]

    rates = rates[:, None]
    kept = jnp.floor(grid_counts * (1 - rates) + 1e-4).astype(jnp.int32)
    for rate in (config.rho_max, config.rho_min):
        kept = jnp.where(rates == jnp.asarray(rate, rates.dtype), setting(rate), kept)
    return jnp.where((audio_counts > 0)[:, None], kept, setting(config.rho_video))


def dpc_knn(grid: Float[Array, "P D"], mask: Bool[Array, " P"], knn: int) -> Float[Array, " P"]:
    """DPC-KNN in log space with distance 1 - cosine; the density averages it unsquared."""
    distance = cosine_distances(grid)
    return density_peaks(distance, distance, mask, knn)
