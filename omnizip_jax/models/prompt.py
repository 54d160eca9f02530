"""Media in the prompt: markers around a clip, and positions of the tokens of a window."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from omnizip_jax.models.config import BaseModelConfig
from omnizip_jax.models.rope import text_positions
from omnizip_jax.types import Window


def start_markers(config: BaseModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens before a clip: of the video, then of the audio inside it."""
    markers = (config.vision_start_token, video), (config.audio_start_token, audio)
    return tuple(token for token, used in markers if used)


def end_markers(config: BaseModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens after a clip, in the opposite order."""
    markers = (config.audio_end_token, audio), (config.vision_end_token, video)
    return tuple(token for token, used in markers if used)


def window_positions(
    window: Window,
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
    grid_slots: int,
    audio_slots: int,
) -> Int[Array, "3 slots"]:
    """Positions of one window's slots, video grids first, then audio.

    Args:
        time: position at which the window starts.
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
