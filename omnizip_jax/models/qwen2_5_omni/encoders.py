"""Windows to encoded windows: both encoders, any number of windows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.encode import encode_if, encode_video, map_windows
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder
from omnizip_jax.models.sharding import replicate
from omnizip_jax.types import AudioFeatures, EncodedWindow, VisionFeatures, Window

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
    """Encode one window; windows do not influence each other.

    Args:
        weights: the model's parameters, ``{"audio": ..., "vision": ..., "text": ...}``.
        window: one window, without a leading axis.
        dtype: of the computation (``Params.dtype``).
        skip: do not run the encoder of an absent modality. Not under ``jax.vmap``: both branches
            then run, and their weights are copied for every window.
        wants: features that a method needs beyond embeddings (``Method.wants``): "vision".
    """

    def encode_audio() -> AudioFeatures:
        audio = AudioEncoder(config.audio, dtype, backend).bind({"params": weights["audio"]})
        return audio(window.mel, window.mel_length)

    def encode_grid(patches: Array) -> tuple[Array, None, VisionFeatures | None]:
        vision = VisionEncoder(config.vision, dtype, backend).bind({"params": weights["vision"]})
        tokens, features = vision(patches, window.grid_size, attention="vision" in wants)
        return tokens, None, features

    audio = encode_if(window.mel_length > 0, encode_audio, skip)
    encoded = EncodedWindow(audio=audio, **encode_video(encode_grid, window, skip))
    return replicate(encoded, weights)


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
    """Encode a block of windows; arguments as for ``encode_window``."""
    sequential = backend.windows_in_sequence

    def encode(window: Window) -> EncodedWindow:
        return encode_window(weights, window, config, dtype, backend, sequential, wants)

    return map_windows(encode, windows, sequential)
