"""Windows to encoded windows: both encoders, any number of windows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.encode import applied, encode_if, encode_video, map_windows
from omnizip_jax.models.qwen3_omni.audio import AudioEncoder
from omnizip_jax.models.qwen3_omni.config import ModelConfig
from omnizip_jax.models.qwen3_omni.vision import VisionEncoder
from omnizip_jax.models.sharding import replicate
from omnizip_jax.types import AudioFeatures, EncodedWindow, Window

FLOAT32 = jnp.dtype(jnp.float32)


def encode_window(
    weights: Any,
    window: Window,
    config: ModelConfig,
    dtype: jnp.dtype = FLOAT32,
    backend: Backend = Backend.CPU,
    skip: bool = True,
    wants: frozenset[str] = frozenset(),
) -> EncodedWindow:
    """Encode one window of a stream, whose audio attends to its own 2 s only.

    The released encoder attends over 8 s, as ``encode_windows`` does.

    Args:
        weights: the model's parameters, ``{"audio": ..., "vision": ..., "text": ...}``.
        window: one window, without a leading axis.
        dtype: of the computation (``Params.dtype``).
        skip: do not run the encoder of an absent modality. Not under ``jax.vmap``: both branches
            then run, and their weights are copied for every window.
        wants: features that a method needs beyond embeddings (``Method.wants``): "vision".
    """
    audio_encoder, vision_encoder = _encoders(weights, config, dtype, backend)
    mel = window.mel[None], jnp.asarray(window.mel_length)[None]
    audio = jax.tree.map(lambda x: x[0], _encode_audio(audio_encoder, mel, skip))
    video = encode_video(vision_encoder, window, "vision" in wants, skip)
    return replicate(EncodedWindow(audio=audio, **video, **_published_rule(config)), weights)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "backend", "wants"))
def encode_windows(
    weights: Any,
    windows: Window,
    *,
    config: ModelConfig,
    dtype: jnp.dtype = FLOAT32,
    backend: Backend = Backend.CPU,
    wants: frozenset[str] = frozenset(),
) -> EncodedWindow:
    """Encode a block of windows that begins at a multiple of 8 s; arguments as ``encode_window``.

    The audio of four windows is encoded together, as in the released encoder.
    """
    sequential = backend.windows_in_sequence
    count, size = len(windows.mel), config.audio.block // config.spec.mel_frames
    audio_encoder, vision_encoder = _encoders(weights, config, dtype, backend)

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    def encode_audio(mel: tuple[Array, Array]) -> AudioFeatures:
        return _encode_audio(audio_encoder, mel, sequential)

    def encode_grids(window: Window) -> dict[str, Any]:
        return encode_video(vision_encoder, window, "vision" in wants, sequential)

    mel = blocks(jnp.asarray(windows.mel)), blocks(jnp.asarray(windows.mel_length))
    audio = map_windows(encode_audio, mel, sequential)
    audio = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], audio)
    video = map_windows(encode_grids, windows, sequential)
    return replicate(EncodedWindow(audio=audio, **video, **_published_rule(config)), weights)


def _published_rule(config: ModelConfig) -> dict[str, Any]:
    """A grid and its audio alternate in the prompt; the audio score has the encoder's blocks."""
    spec = config.spec
    return {"runs": spec.grids, "score_windows": config.audio.block // spec.mel_frames}


def _encoders(
    weights: Any, config: ModelConfig, dtype: jnp.dtype, backend: Backend
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The audio and the vision encoder with their weights."""
    audio = applied(AudioEncoder(config.audio, dtype, backend), weights["audio"])
    vision = applied(VisionEncoder(config.vision, dtype, backend), weights["vision"])
    return audio, vision


def _encode_audio(
    encoder: Callable[..., Any], mel: tuple[Array, Array], skip: bool
) -> AudioFeatures:
    """Encode the windows of one attention block; ``mel`` is their spectrograms and lengths."""
    return encode_if(jnp.any(mel[1] > 0), lambda: encoder(*mel), skip)
