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

from omnizip_jax.models import layer_scan as layers
from omnizip_jax.models.attention import attend
from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.linear import Linear
from omnizip_jax.models.qwen2_5_omni.config import AudioConfig
from omnizip_jax.types import AudioFeatures

POSITION_TIMESCALE = 10000.0  # longest wavelength of the sinusoids, over 2 pi
# Logical axes of the parameters that are split over devices, by the end of their path.
AXES = {
    "q_proj/weight": ("audio_heads", "embed"),
    "q_proj/bias": ("audio_heads",),
    "k_proj/weight": ("audio_heads", "embed"),
    "v_proj/weight": ("audio_heads", "embed"),
    "v_proj/bias": ("audio_heads",),
    "out_proj/weight": ("embed", "audio_heads"),
    "fc1/weight": ("audio_ffn", "embed"),
    "fc1/bias": ("audio_ffn",),
    "fc2/weight": ("embed", "audio_ffn"),
}


class AudioAttention(nn.Module):
    """Self-attention that also returns its queries and keys."""

    config: AudioConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x, mask):
        width, heads = self.config.hidden, (x.shape[0], self.config.heads, self.config.head_dim)
        linear = functools.partial(Linear, width, dtype=self.dtype, backend=self.backend)
        q = linear(name="q_proj")(x).reshape(heads)
        k = linear(name="k_proj", use_bias=False)(x).reshape(heads)
        v = linear(name="v_proj")(x).reshape(heads)
        out = attend(q, k, v, mask, self.backend.fused_attention).reshape(x.shape)
        return linear(name="out_proj")(out), q, k


class AudioLayer(nn.Module):
    """One pre-norm layer, with the signature of ``layers.run``: carry in, carry out.

    Queries and keys are part of the carry, so that only the last layer's are returned.
    """

    config: AudioConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, carry, index, mask):
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        norm = functools.partial(_layer_norm, self.dtype)
        x, _, _ = carry
        attention = AudioAttention(self.config, self.dtype, self.backend, name="self_attn")
        out, q, k = attention(norm("self_attn_layer_norm")(x), mask)
        x = x + out
        out = linear(self.config.ffn, name="fc1")(norm("final_layer_norm")(x))
        x = x + linear(self.config.hidden, name="fc2")(nn.gelu(out, approximate=False))
        return x, q, k


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
        x = x + _sinusoids(frames, config.hidden).astype(self.dtype)

        # Padding attends to padding, so that no row of the softmax is empty.
        mask = (frame_mask[:, None] == frame_mask)[None]
        layer = AudioLayer(config, self.dtype, self.backend, parent=None)
        heads = jnp.zeros((frames, config.heads, config.head_dim), self.dtype)
        carry = (x, heads, heads)
        stack = layers.stacked(self, "layers", layer, config.layers, carry, 0, mask)
        x, queries, keys = layers.run(
            layer, stack, carry, mask, layers=range(config.layers), backend=self.backend
        )

        pooled = x[: frames // 2 * 2].reshape(frames // 2, 2, -1).mean(axis=1)
        pooled = _layer_norm(self.dtype, "ln_post")(pooled)
        project = Linear(config.output, True, self.dtype, self.backend, name="proj")
        return AudioFeatures(project(pooled), token_mask, queries, keys, frame_mask)


def _layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-5, dtype=dtype, param_dtype=dtype, use_fast_variance=False, name=name
    )


def _sinusoids(length: int, channels: int) -> Float[Array, "T D"]:
    """Whisper's absolute positions: sines in the first half of the channels, then cosines."""
    steps = jnp.arange(channels // 2, dtype=jnp.float32)
    frequencies = jnp.exp(-jnp.log(POSITION_TIMESCALE) / (channels // 2 - 1) * steps)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
