"""Where the tokens of a window lie in time, height and width."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from omnizip_jax.models.rope import text_positions
from omnizip_jax.types import Window


def window_positions(
    window: Window,
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
    grid_slots: int,
    audio_slots: int,
) -> Int[Array, "3 slots"]:
    """Positions of one window's slots, video grids first, then audio.

    Args:
        time: position at which the window begins: 50 after the one before.
        base: position at which its video begins, right after the start tokens.
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
    """The position that follows a window, if it is the last of its video.

    The text after a video continues from its last segment, which is audio where the last window
    has any, even if its video reached further (transformers' ``get_rope_index`` does so).
    """
    sound = jnp.sum(audio_mask)
    last_grid = jnp.max(jnp.where(window.grid_mask, window.grid_time, 0))
    after_video = jnp.maximum(time + last_grid, base + jnp.max(window.grid_size) - 1) + 1
    return jnp.where(sound > 0, time + sound, after_video)


def audio_tokens(mel_length: Int[np.ndarray, " W"]) -> Int[np.ndarray, " W"]:
    """Audio tokens that so many mel frames become: a convolution of stride 2, pooling in pairs."""
    return (mel_length + 1) // 4
