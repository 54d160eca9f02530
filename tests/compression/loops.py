"""Clips and float64 loops that the oracles of the methods share, and jitted selection."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from omnizip_jax.compression import EVS, Seats
from omnizip_jax.compression.per_modality import PerModality, Rates
from omnizip_jax.types import AudioFeatures, EncodedWindow, VisionFeatures
from tests.compression.clips import random_clip
from tests.compression.oracle import half_even

HEADS, SIZE = 2, 8
KEY = jax.random.key(0)
GOLDEN = (5**0.5 - 1) / 2


def encoded_clip(seed: int, *, scattered: bool = False, vision: bool = False, **shape):
    """An encoded clip with holes; ``scattered``: padding lies anywhere under the masks of video.

    Queries and keys are random; where the masks leave something out is large garbage.
    """
    tokens = random_clip(seed, **shape)
    rng = np.random.default_rng([seed, 1])
    windows, sounds = tokens.audio_mask.shape
    frame_mask = np.repeat(tokens.audio_mask, 2, axis=-1)
    heard = rng.standard_normal((windows, 2 * sounds, HEADS, SIZE))
    asked = rng.standard_normal((windows, 2 * sounds, HEADS, SIZE))
    video_mask = tokens.video_mask
    if scattered:
        video_mask = video_mask & (rng.random(video_mask.shape) < 0.8)
    real = video_mask[..., None]
    return EncodedWindow(
        audio=AudioFeatures(
            tokens=tokens.audio,
            token_mask=tokens.audio_mask,
            queries=np.float32(np.where(frame_mask[..., None, None], 2 * asked, 50)),
            keys=np.float32(np.where(frame_mask[..., None, None], heard, 50)),
            frame_mask=frame_mask,
        ),
        video=np.float32(np.where(real, tokens.video, 1e3)),
        video_mask=video_mask,
        vision=VisionFeatures(
            received=np.float32(np.where(video_mask, rng.random(video_mask.shape), 0)),
            keys=np.float32(np.where(real, rng.standard_normal((*video_mask.shape, SIZE)), 1e3)),
        )
        if vision
        else None,
    )


def eventful(windows: int = 40, at: int = 20):
    """A static video with steady audio, except for one window that shows something else."""
    clip = encoded_clip(3, windows=windows, holes=False)
    rng = np.random.default_rng(0)
    video = np.tile(clip.video[:1, :1], (windows, 2, 1, 1))
    video = video + 0.1 * rng.standard_normal(video.shape)
    video[at, :, :4] = 3 * rng.standard_normal(video[at, :, :4].shape)
    return clip.replace(video=video.astype(np.float32))


def blank(windows: EncodedWindow) -> EncodedWindow:
    """The same clip with other padding."""
    audio, real = windows.audio, windows.video_mask[..., None]
    frames = audio.frame_mask[..., None, None]
    vision = windows.vision
    return windows.replace(
        audio=audio.replace(
            tokens=np.where(audio.token_mask[..., None], audio.tokens, -3),
            queries=np.where(frames, audio.queries, -3),
            keys=np.where(frames, audio.keys, -3),
        ),
        video=np.where(real, windows.video, -3),
        vision=vision
        and vision.replace(
            received=np.where(windows.video_mask, vision.received, 7),
            keys=np.where(real, vision.keys, -3),
        ),
    )


def sizes(windows):
    """Valid tokens of each window: the arguments of ``plan``."""
    audio, video = np.asarray(windows.audio.token_mask), np.asarray(windows.video_mask)
    return audio.sum(-1), video.sum((-2, -1))


@functools.partial(jax.jit, static_argnums=0)
def select_program(method, windows, budget, key):
    return method.select(windows, budget, key)


def select(method, windows, key=KEY):
    """The selection of a clip, at the budget that the method plans on the host."""
    return run(method, windows, method.plan(*sizes(windows)), key)


def run(method, windows, budget, key=KEY):
    """``method.select`` in the program of all methods that differ in settings of ``plan`` alone."""
    if "vision" not in method.wants:
        windows = windows.replace(vision=None)
    return select_program(shared(method), windows, budget, key)


def shared(method):
    """The method with other settings in place of those that only ``plan`` reads."""
    if not isinstance(method, PerModality) or getattr(method, "causal", False):
        return method
    if isinstance(method, Seats):
        return dataclasses.replace(method, keep=None)
    if method.keep is not None:
        method = dataclasses.replace(method, keep=0.5)
    if not isinstance(method, Rates):
        return method
    if method.keep is None and method.rho_audio == 0:  # audio that is kept whole is not ranked
        return dataclasses.replace(method, rho_video=0.5)
    method = dataclasses.replace(method, rho_audio=0.5, rho_video=0.5)
    if isinstance(method, EVS) or method.split == "joint":
        return method
    return dataclasses.replace(method, keep=None)


@functools.partial(jax.jit, static_argnums=0)
def stream_program(method, windows, key):
    def step(state, window):
        state, number = state
        state, selection = method.step(state, window, jax.random.fold_in(key, number))
        return (state, number + 1), selection

    first = jax.tree.map(lambda x: x[0], windows)
    return jax.lax.scan(step, (method.begin(first), 0), windows)[1]


def stream(method, windows, key=KEY):
    """The selection of a clip, window by window."""
    if "vision" not in method.wants:
        windows = windows.replace(vision=None)
    return jax.tree.map(np.asarray, stream_program(method, windows, key))


def top(scores, mask, count):
    """The mask of the highest scores of a clip; ties go to the earlier."""
    keep = np.zeros(mask.shape, bool)
    valid = [tuple(i) for i in np.argwhere(mask)]
    for index in sorted(valid, key=lambda i: (-scores[i], i))[:count]:
        keep[index] = True
    return keep


def received(queries, keys):
    """Attention that each key receives: mean over heads, summed over queries."""
    total = np.zeros(len(keys))
    for head in range(queries.shape[1]):
        for query in np.float64(queries[:, head]):
            logits = np.float64(keys[:, head]) @ query / np.sqrt(queries.shape[2])
            weights = np.exp(logits - logits.max())
            total += weights / weights.sum()
    return total / queries.shape[1]


def audio_scores(audio):
    """Eq. 2 over the clip, pooled in pairs."""
    mask = audio.frame_mask
    scores = np.zeros(mask.shape)
    if mask.any():
        scores[mask] = received(audio.queries[mask], audio.keys[mask]) / mask.sum()
    return scores.reshape(*audio.token_mask.shape, 2).mean(-1)


def line(keep, windows, anchors=0):
    """Audio and video tokens that a share keeps, along the line of the paper's settings."""
    audio, video = windows.audio.token_mask.sum(), windows.video_mask.sum()
    total = half_even(keep, audio + video)
    rho_audio = 1 - (total - anchors + 0.3 * video) / max(audio + video, 1)
    kept = anchors + round(round((1 - rho_audio) * audio * 1024) / 1024)
    kept = min(max(kept, anchors, total - video), min(total, audio))
    return int(kept), int(total - kept)


def unit(x):
    """Vectors of length 1, the same way."""
    x = np.float64(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cosine(a, b):
    return unit(a) @ unit(b)


def grids_in_order(windows):
    """(window, grid) of the grids that exist, in time."""
    return [tuple(i) for i in np.argwhere(windows.video_mask.any(-1))]
