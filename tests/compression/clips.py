"""Random clips with every kind of hole: no audio, no video, short tails, missing grids."""

import dataclasses
import functools

import jax
import numpy as np

from omnizip_jax.compression.omnizip_steps import compress_clip
from omnizip_jax.types import WindowTokens

compress_program = functools.partial(jax.jit, static_argnames="config")(compress_clip)


def counts_of(tokens):
    """Valid tokens of each window: the arguments of ``plan``."""
    return tokens.audio_mask.sum(1), tokens.video_mask.sum((1, 2))


def compress(tokens, config):
    """``compress_clip`` jitted, at the budget that the method plans on the host.

    ``keep`` only matters to ``plan``; the program has another, so that all shares have one.
    """
    budget = config.plan(*counts_of(tokens))
    if getattr(config, "keep", None) is not None:
        config = dataclasses.replace(config, keep=0.5)
    return compress_program(tokens, budget, config=config)


def random_clip(seed, windows=6, audio=20, grids=2, slots=16, width=24, scale=1.0, holes=True):
    """Features of norm about ``scale * sqrt(width)``; padding holds large garbage."""
    rng = np.random.default_rng(seed)
    audio_count = np.full(windows, audio)
    grid_count = np.full((windows, grids), rng.integers(slots // 2, slots + 1) if holes else slots)
    if holes:
        audio_count[-1] = rng.integers(1, audio + 1)
        grid_count[-1, rng.integers(1, grids + 1) :] = 0
        audio_count[rng.integers(0, windows)] = 0
        grid_count[rng.integers(0, windows)] = 0
        audio_count[rng.integers(0, windows)] = rng.integers(0, audio + 1)
    audio_mask = np.arange(audio) < audio_count[:, None]
    video_mask = np.arange(slots) < grid_count[:, :, None]
    # Grids of a window resemble each other, and so do neighbouring windows' sounds.
    scene = rng.standard_normal((windows, 1, slots, width))
    video = scene + 0.7 * rng.standard_normal((windows, grids, slots, width))
    sound = rng.standard_normal((windows, 1, width)) + rng.standard_normal((windows, audio, width))
    # Loud and quiet windows, so that retention differs.
    scores = rng.random((windows, audio)) * rng.uniform(0.5, 2, (windows, 1))
    garbage = 1e3 * rng.standard_normal(width)
    return WindowTokens(
        audio=np.where(audio_mask[..., None], scale * sound, garbage).astype(np.float32),
        audio_scores=np.where(audio_mask, scores, 9).astype(np.float32),
        audio_mask=audio_mask,
        video=np.where(video_mask[..., None], scale * video, garbage).astype(np.float32),
        video_mask=video_mask,
    )
