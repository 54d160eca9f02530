"""Audio encoder of Qwen2.5-Omni: one window of log-mel spectrogram to audio tokens.

The encoder attends inside blocks of ``2 * n_window`` mel frames and its positions restart in every
block. A window of 2 s is one such block, so windows are independent: use ``jax.vmap`` or
``jax.lax.map`` for several.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.encoder_layers import layer_norm, run_layers, sinusoids
from omnizip_jax.models.linear import Linear
from omnizip_jax.models.qwen2_5_omni.config import AudioConfig
from omnizip_jax.types import AudioFeatures


class AudioEncoder(nn.Module):
    """Two convolutions, transformer layers, pooling in pairs, projection to the decoder's width."""

    config: AudioConfig
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend.CPU

    @nn.compact
    @full_precision
    def __call__(
        self, mel: Float[Array, "bins frames"], mel_length: Int[Array, ""] | int
    ) -> AudioFeatures:
        """Encode one window.

        Args:
            mel: log-mel spectrogram of ``2 * n_window`` frames, 100 frames per second.
            mel_length: number of valid mel frames, 0 to ``2 * n_window``; the rest is ignored.

        Raises:
            ValueError: ``mel`` has another shape.
        """
        config, frames = self.config, self.config.n_window
        if mel.shape != (config.mel_bins, 2 * frames):
            raise ValueError(
                f"expected the mel spectrogram of one window, shape "
                f"{(config.mel_bins, 2 * frames)}, got {mel.shape}; pad a shorter window with "
                "zeros, and vmap over several windows"
            )
        frame_mask = jnp.arange(frames) < (mel_length + 1) // 2
        token_mask = jnp.arange(frames // 2) < (mel_length + 1) // 4
        mel_mask = (jnp.arange(2 * frames) < mel_length)[:, None]

        conv = functools.partial(
            nn.Conv, config.hidden, (3,), padding=1, dtype=self.dtype, param_dtype=self.dtype
        )
        # The second convolution must read the zeros that follow a shorter input.
        x = nn.gelu(conv(name="conv1")(mel.T * mel_mask), approximate=False) * mel_mask
        x = nn.gelu(conv(name="conv2", strides=2)(x), approximate=False)
        x = x + sinusoids(frames, config.hidden).astype(self.dtype)

        x, queries, keys = run_layers(self, x, frame_mask, key_bias=False)
        pooled = x[: frames // 2 * 2].reshape(frames // 2, 2, -1).mean(axis=1)
        pooled = layer_norm(self.dtype, "ln_post")(pooled)
        project = Linear(config.output, True, self.dtype, self.backend, name="proj")
        return AudioFeatures(project(pooled), token_mask, queries, keys, frame_mask)
