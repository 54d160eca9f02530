"""Audio encoder of Qwen3-Omni (AuT): windows of log-mel spectrogram to audio tokens.

Three 2-D convolutions read chunks of 1 s, positions restart in every chunk, and the layers attend
inside blocks of ``block`` mel frames, 8 s as released, counted from the start of the clip. So
four windows of 2 s that begin at a multiple of 8 s are encoded together; a window alone has a
shorter block, with which the model was trained too but which gives other values.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.encoder_layers import layer_norm, run_layers, sinusoids
from omnizip_jax.models.linear import Linear
from omnizip_jax.models.qwen3_omni.config import CHUNK_TOKENS, AudioConfig
from omnizip_jax.types import AudioFeatures

Lengths = TypeVar("Lengths", Array, np.ndarray)


def audio_tokens(mel_length: Lengths) -> Lengths:
    """Number of audio tokens for mel frames: 13 for each second, and 1 for 8 more begun."""
    return CHUNK_TOKENS * (mel_length // 100) + (mel_length % 100 + 7) // 8


class AudioEncoder(nn.Module):
    """Three convolutions, transformer layers, two projections to the decoder's width."""

    config: AudioConfig
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend.CPU

    @nn.compact
    @full_precision
    def __call__(
        self, mel: Float[Array, "W bins frames"], mel_length: Int[Array, " W"]
    ) -> AudioFeatures:
        """Encode the W windows of one attention block together.

        A chunk that is not full is padded with zeros, as in transformers, except where a whole clip
        is shorter than 1 s: transformers pads no such clip, and its last tokens differ.

        Args:
            mel: log-mel spectrograms, 100 frames per second, of whole seconds.
            mel_length: number of valid mel frames of each window; the rest is ignored.

        Raises:
            ValueError: ``mel`` has another shape, or is longer than a block.
        """
        config, chunk = self.config, 2 * self.config.n_window
        bins, block = config.mel_bins, config.block
        fits = mel.ndim == 3 and mel.shape[1] == bins and mel.shape[2] % chunk == 0
        if not fits or mel.shape[0] * mel.shape[2] > block:
            raise ValueError(
                f"expected the mel spectrograms of one block's windows, [windows, {bins}, frames] "
                f"with a multiple of {chunk} frames, at most {block} in all, got {mel.shape}"
            )
        windows, _, frames = mel.shape
        valid = jnp.arange(frames) < mel_length[:, None]
        x = jnp.where(valid[:, None], mel, 0).swapaxes(1, 2).reshape(-1, chunk, bins, 1)
        conv = functools.partial(
            nn.Conv,
            config.channels,
            (3, 3),
            strides=2,
            padding=1,
            dtype=self.dtype,
            param_dtype=self.dtype,
        )
        for name in ("conv2d1", "conv2d2", "conv2d3"):
            x = nn.gelu(conv(name=name)(x), approximate=False)  # [chunk, time, bin, channel]
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        x = x.swapaxes(2, 3).reshape(-1, config.channels * x.shape[2])
        x = linear(config.hidden, False, name="conv_out")(x)
        position = sinusoids(CHUNK_TOKENS, config.hidden).astype(self.dtype)
        x = x + jnp.tile(position, (x.shape[0] // CHUNK_TOKENS, 1))

        slots = x.shape[0] // windows
        mask = jnp.arange(slots) < audio_tokens(mel_length)[:, None]
        x, queries, keys = run_layers(self, x, mask.reshape(-1), key_bias=True)
        x = linear(config.hidden, name="proj1")(layer_norm(self.dtype, "ln_post")(x))
        tokens = linear(config.output, name="proj2")(nn.gelu(x, approximate=False))
        tokens, queries, keys = (
            y.reshape(windows, slots, *y.shape[1:]) for y in (tokens, queries, keys)
        )
        return AudioFeatures(tokens, mask, queries, keys, mask)
