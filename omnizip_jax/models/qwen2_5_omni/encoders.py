"""Windows to encoded windows: both encoders, any number of windows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.encode import applied, encode_if, encode_video, map_windows
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder
from omnizip_jax.models.sharding import replicate
from omnizip_jax.types import EncodedWindow, Window

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

    audio = applied(AudioEncoder(config.audio, dtype, backend), weights["audio"])
    vision = applied(VisionEncoder(config.vision, dtype, backend), weights["vision"])
    encoded = EncodedWindow(
        audio=encode_if(window.mel_length > 0, lambda: audio(window.mel, window.mel_length), skip),
        **encode_video(vision, window, "vision" in wants, skip),
    )
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
