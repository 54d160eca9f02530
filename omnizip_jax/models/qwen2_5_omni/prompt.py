"""Media in the prompt: number of tokens, and the position after a clip.

The two start markers share one position, and so do the two end markers.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from omnizip_jax.types import Window

DEFAULT_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)
MARKERS_SHARE_POSITION = True
token_order = None  # of a window's slots in the sequence: as they are, video then audio


def audio_tokens(mel_length: Int[np.ndarray, " W"]) -> Int[np.ndarray, " W"]:
    """Number of audio tokens for mel frames: a convolution of stride 2, pooling in pairs."""
    return (mel_length + 1) // 4


def position_after(
    window: Window,
    audio_mask: Bool[Array, "A"],
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
) -> Int[Array, ""]:
    """Position of the first token after a clip, from its last window.

    As in transformers' ``get_rope_index``, text continues from the last segment: from the audio if
    the last window has any, even if its video has greater positions.
    """
    audio = jnp.sum(audio_mask)
    last_grid = jnp.max(jnp.where(window.grid_mask, window.grid_time, 0))
    after_video = jnp.maximum(time + last_grid, base + jnp.max(window.grid_size) - 1) + 1
    return jnp.where(audio > 0, time + audio, after_video)
