"""TMRoPE: the positions of text and windows, and the rotation of queries and keys by them.

A position has three axes: time, height, width. Text and audio move on all three at once; a video
token has the time of its grid and the row and column of its cell. Pruning leaves the positions of
the tokens that stay untouched.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.config import TextConfig
from omnizip_jax.types import Window


def angles(positions: Int[Array, "3 T"], config: TextConfig) -> Float[Array, "T half"]:
    """Rotation angle of every frequency: the axis it turns with is given by ``mrope_section``."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    axis = jnp.repeat(jnp.arange(3), jnp.array(config.mrope_section), total_repeat_length=half)
    return positions[axis].T.astype(jnp.float32) * frequencies


def rotate(x: Float[Array, "T N H"], angle: Float[Array, "T half"]) -> Float[Array, "T N H"]:
    """Turn each pair (x[i], x[i + H/2]) by its angle; computed in float32."""
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def text_positions(start: Int[Array, ""] | int, length: int) -> Int[Array, "3 T"]:
    """Positions of ``length`` text tokens, the first at ``start``."""
    return jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (3, length))


def window_positions(
    window: Window,
    time: Int[Array, ""],
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
    time: Int[Array, ""],
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
