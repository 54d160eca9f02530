"""A clip as many windows, each through all of the compression; only two steps see the whole clip.

The ranking of the audio tokens and the video budget are those two; under the paper's rule
everything else happens inside a window.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression import published
from omnizip_jax.compression.audio import (
    cross_modal_similarity,
    merge_into_anchors,
    sample_anchors,
    select_salient,
)
from omnizip_jax.compression.budget import allocate_discards
from omnizip_jax.compression.counts import exact, lookup, round_share, salience_order
from omnizip_jax.compression.video import dpc_knn, istc, split_over_grids
from omnizip_jax.config import OmniZipConfig
from omnizip_jax.types import WindowTokens


class CompressedClip(struct.PyTreeNode):
    """What compression makes of a clip, and why.

    Attributes:
        audio: audio embeddings, merged where a token is an anchor.
        audio_keep: audio tokens that stay: the salient ones and the anchors.
        audio_salient: the salient ones alone.
        audio_order: place of each audio token in its window's order of salience, 0 first.
        video_keep: video tokens that stay.
        video_order: place of each video token in its grid's order of salience, 0 first.
        audio_retention: S_a, kept share of each window's audio tokens; 0 without audio.
        video_rate: discarded share of each window's video tokens; 0 without video.
    """

    audio: Float[Array, "W A D"]
    audio_keep: Bool[Array, "W A"]
    audio_salient: Bool[Array, "W A"]
    audio_order: Int[Array, "W A"]
    video_keep: Bool[Array, "W G P"]
    video_order: Int[Array, "W G P"]
    audio_retention: Float[Array, " W"]
    video_rate: Float[Array, " W"]


def consolidate_window(
    audio: Float[Array, "A D"],
    audio_mask: Bool[Array, " A"],
    salient: Bool[Array, " A"],
    video: Float[Array, "G P D"],
    video_mask: Bool[Array, "G P"],
    config: OmniZipConfig,
) -> tuple[Float[Array, "A D"], Bool[Array, " A"]]:
    """Audio anchor consolidation inside one window (section 3.3, eq. 3-4).

    Of its n audio tokens, ``anchor_ratio * n`` (half to even) become anchors, as far as there are
    non-salient ones; they are kept in addition to the salient tokens. ``merge_size=0``: none.

    Returns:
        The audio with merged anchors, and the mask of the anchors.
    """
    if config.merge_size == 0:
        return audio, jnp.zeros_like(salient)
    others = audio_mask & ~salient
    rule = partial(round_share, exact(config.anchor_ratio))
    count = lookup(rule, jnp.sum(audio_mask), audio_mask.size)
    slots = int(rule(np.array(audio_mask.size)))
    anchor, filled, anchors = sample_anchors(others, count, slots)
    relevance = cross_modal_similarity(
        audio, video.reshape(-1, video.shape[-1]), video_mask.reshape(-1)
    )
    candidates = others & ~anchors
    merged = merge_into_anchors(audio, candidates, relevance, anchor, filled, config.merge_size)
    return merged, anchors


def _over_windows(function, *arrays):
    """``lax.map`` that reads each window where it lies: no copy of the clip."""

    def take(batch: int | None, *arrays: Array):
        windows = jnp.arange(arrays[0].shape[0])
        return jax.lax.map(lambda i: function(*(x[i] for x in arrays)), windows, batch_size=batch)

    # One window is enough work for a CPU; on an accelerator its kernels would be too small.
    return jax.lax.platform_dependent(*arrays, cpu=partial(take, None), default=partial(take, 16))


def compress_clip(tokens: WindowTokens, config: OmniZipConfig) -> CompressedClip:
    """Compress a clip of W windows; pure, of static shape, jittable with ``config`` static.

    1. Audio token selection over the clip: the ``(1 - rho_audio)`` of all valid audio tokens
       (rounded half to even) with the highest scores are salient.
    2. Audio anchor consolidation (``consolidate_window``).
    3. Retention S_a of each window, anchors included.
    4. Video budget over the clip (``allocate_discards``): eq. 5 and Algorithm 1.
    5. ISTC inside each window (``istc``): eq. 6-8.

    Under ``OmniZipConfig.published`` steps 2 and 4 and the distance of step 5 are those of
    ``omnizip_jax.compression.published``.

    Args:
        tokens: the windows, as the encoders give them.
        config: rule and settings.

    Raises:
        ValueError: the arrays of ``tokens`` do not belong together.
    """
    _check(tokens)
    is_paper = config.rule == "paper"
    audio_mask, video_mask = tokens.audio_mask, tokens.video_mask
    audio_counts, grid_counts = audio_mask.sum(-1), video_mask.sum(-1)
    video_counts = grid_counts.sum(-1)

    count = lookup(_salient_rule(config), audio_counts.sum(), audio_mask.size)
    salient = select_salient(tokens.audio_scores, audio_mask, count)

    if is_paper:
        audio, anchors = _over_windows(
            partial(consolidate_window, config=config),
            tokens.audio,
            audio_mask,
            salient,
            tokens.video,
            video_mask,
        )
    else:
        audio, anchors = published.consolidate_clip(tokens, salient, config)
    audio_keep = salient | anchors
    retention = audio_keep.sum(-1) / jnp.maximum(audio_counts, 1)

    if is_paper:
        slots = video_mask.shape[1] * video_mask.shape[2]
        discards = allocate_discards(retention, audio_counts, video_counts, config, slots)
        grid_keep = jax.vmap(split_over_grids)(video_counts - discards, grid_counts)
        spatial = partial(dpc_knn, knn=config.knn, relative=config.relative_distance)
    else:
        rates = published.video_rates(retention, audio_counts, video_counts, config)
        grid_keep = published.grid_keeps(
            rates, audio_counts, grid_counts, config, video_mask.shape[2]
        )
        spatial = partial(published.dpc_knn, knn=config.knn)

    video_keep, video_order = _over_windows(
        partial(istc, spatial=spatial), tokens.video, video_mask, grid_keep
    )
    discarded = video_counts - video_keep.sum((-1, -2))
    return CompressedClip(
        audio=audio,
        audio_keep=audio_keep,
        audio_salient=salient,
        audio_order=jax.vmap(salience_order)(tokens.audio_scores, audio_mask),
        video_keep=video_keep,
        video_order=video_order,
        audio_retention=retention,
        video_rate=discarded / jnp.maximum(video_counts, 1),
    )


def kept_bound(
    audio_counts: Int[np.ndarray, " W"], video_counts: Int[np.ndarray, " W"], config: OmniZipConfig
) -> int:
    """Upper bound on the tokens that ``compress_clip`` keeps, known on the host beforehand.

    Under the paper's rule it is exact, except that windows with hardly any non-salient tokens may
    have fewer anchors. Under the published rule the rates are not known beforehand: windows with
    audio may keep up to ``1 - rho_min`` of their video.

    Args:
        audio_counts, video_counts: valid tokens of each window.
        config: rule and settings.
    """
    audio_counts, video_counts = np.asarray(audio_counts), np.asarray(video_counts)
    audio, video = audio_counts.sum(), video_counts.sum()
    salient = _salient_rule(config)(audio)
    if config.rule == "paper":
        anchors = round_share(exact(config.anchor_ratio), audio_counts).sum()
        kept_video = video - round_share(exact(config.rho_video), video)
    else:
        anchors = published.round_float(config.anchor_ratio, audio)
        rates = np.where(audio_counts > 0, config.rho_min, config.rho_video)
        kept_video = published.floor_float(1 - rates, video_counts).sum()
    if config.merge_size == 0:
        anchors = 0
    if config.causal:
        # The balance may stray, and bounds round against it: a window's worth, and a token each.
        slack = audio_counts.max(initial=0) + video_counts.max(initial=0) + len(video_counts)
        return int(min(salient + anchors + kept_video + slack, audio + video))
    return int(min(salient + anchors, audio) + kept_video)


def _salient_rule(config: OmniZipConfig):
    """Number of salient tokens among so many, half to even."""
    if config.rule == "paper":
        return partial(round_share, 1 - exact(config.rho_audio))
    return partial(published.round_float, 1 - config.rho_audio)


def _check(tokens: WindowTokens) -> None:
    """Raise ``ValueError`` unless the shapes are those of one clip."""
    expected = {
        "audio_scores": tokens.audio.shape[:-1],
        "audio_mask": tokens.audio.shape[:-1],
        "video": (*tokens.audio.shape[:1], *tokens.video.shape[1:3], tokens.audio.shape[-1]),
        "video_mask": (*tokens.audio.shape[:1], *tokens.video.shape[1:3]),
    }
    for name, shape in expected.items():
        found = getattr(tokens, name).shape
        if found != shape:
            raise ValueError(
                f"tokens.{name} should have the shape {shape} to go with audio [W, A, D] "
                f"{tokens.audio.shape}, got {found}; every leaf of WindowTokens needs the leading "
                "axis of windows (add one for a single window)"
            )
    if tokens.audio.ndim != 3 or tokens.video.ndim != 4:
        raise ValueError(
            "compress_clip takes audio [W, A, D] and video [W, G, P, D], got "
            f"{tokens.audio.shape} and {tokens.video.shape}"
        )
