"""Media in the prompt: markers around a clip, tokens of a window, and their positions.

The two start markers share one position, and so do the two end markers.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.rope import text_positions
from omnizip_jax.types import Window

DEFAULT_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)
MARKERS_SHARE_POSITION = True
token_order = None  # of a window's slots in the sequence: as they are, video then audio


def start_markers(config: ModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens before a clip: of the video, then of the audio inside it."""
    markers = (config.vision_start_token, video), (config.audio_start_token, audio)
    return tuple(token for token, used in markers if used)


def end_markers(config: ModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens after a clip, in the opposite order."""
    markers = (config.audio_end_token, audio), (config.vision_end_token, video)
    return tuple(token for token, used in markers if used)


def audio_tokens(mel_length: Int[np.ndarray, " W"]) -> Int[np.ndarray, " W"]:
    """Number of audio tokens for mel frames: a convolution of stride 2, pooling in pairs."""
    return (mel_length + 1) // 4


def window_positions(
    window: Window,
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
    grid_slots: int,
    audio_slots: int,
) -> Int[Array, "3 slots"]:
    """Positions of one window's slots, video grids first, then audio.

    Args:
        time: position at which the window starts, 50 after the previous one.
        base: position at which the video starts, after the start markers.
    """
    cell = jnp.arange(grid_slots, dtype=jnp.int32)
    columns = jnp.maximum(window.grid_size[1], 1)
    grids = window.grid_time.shape[0]
    shape = (grids, grid_slots)
    video = jnp.stack(
        [
            jnp.broadcast_to((time + window.grid_time)[:, None], shape),
            jnp.broadcast_to(base + cell // columns, shape),
            jnp.broadcast_to(base + cell % columns, shape),
        ]
    ).reshape(3, -1)
    return jnp.concatenate([video, text_positions(time, audio_slots)], axis=1)


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
