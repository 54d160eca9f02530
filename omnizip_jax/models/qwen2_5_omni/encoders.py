"""Windows to encoded windows: both encoders, any number of windows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from omnizip_jax import window_spec
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import Decoder
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder
from omnizip_jax.models.sharding import replicate
from omnizip_jax.types import AudioFeatures, EncodedWindow, VisionFeatures, Window
from omnizip_jax.window_spec import WindowSpec

FLOAT32 = jnp.dtype(jnp.float32)


def bound_decoder(
    weights: Any, config: ModelConfig, dtype: jnp.dtype, backend: Backend = Backend.CPU
) -> Decoder:
    """Bind the decoder to its weights; use it inside the same JAX transformation."""
    return Decoder(config.text, dtype, backend).bind({"params": weights["text"]})


def check_spec(spec: WindowSpec, config: ModelConfig) -> None:
    """Raise ``ValueError`` unless the model's encoders accept windows of this shape."""
    window_spec.check_spec(spec)
    frames = 2 * config.audio.n_window
    if spec.seconds * 100 != frames or spec.audio_slots != frames // 4:
        raise ValueError(
            f"the model's audio blocks are {frames / 100:g} s and {frames // 4} tokens; "
            f"WindowSpec has {spec.seconds} s and {spec.audio_slots}"
        )
    for name in ("patch", "merge", "temporal_patch", "mel_bins", "positions_per_second"):
        ours, theirs = getattr(config.spec, name), getattr(spec, name)
        if ours != theirs:
            raise ValueError(
                f"the model's encoders have {name}={ours}, WindowSpec has {theirs}: "
                "begin with params.config.spec"
            )


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

    def encode_grid(patches: Array) -> tuple[Array, VisionFeatures | None]:
        vision = VisionEncoder(config.vision, dtype, backend).bind({"params": weights["vision"]})
        return vision(patches, window.grid_size, attention="vision" in wants)

    def encode_if(exists: Array, encode: Callable[[], Any]) -> Any:
        if not skip:
            return encode()
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(encode))
        return jax.lax.cond(exists, encode, lambda: zeros)

    video, vision = encode_if(
        jnp.any(window.grid_mask), lambda: jax.vmap(encode_grid)(window.patches)
    )
    cells = jnp.arange(video.shape[1]) < jnp.prod(window.grid_size)
    mask = window.grid_mask[:, None] & cells
    if vision is not None:
        vision = vision.replace(received=jnp.where(mask, vision.received, 0))
    audio = encode_if(window.mel_length > 0, encode_audio)
    encoded = EncodedWindow(audio=audio, video=video, video_mask=mask, vision=vision)
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

    return jax.lax.map(encode, windows) if sequential else jax.vmap(encode)(windows)
