"""TMRoPE: rotation of queries and keys by positions in time, height and width.

Text and audio tokens have the same position on all three axes; a video token has the time of its
grid and the row and column of its cell. Pruning does not change positions.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.models.config import TextConfig


def angles(positions: Int[Array, "3 T"], config: TextConfig) -> Float[Array, "T half"]:
    """Rotation angle of each frequency.

    ``mrope_section`` has the number of frequencies of each axis: consecutive ones, or, interleaved,
    time, height, width, time, ... as long as height and width have frequencies left, then time.
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    section = jnp.array(config.mrope_section)
    if config.mrope_interleaved:
        axis = jnp.arange(half) % 3
        axis = jnp.where(jnp.arange(half) < 3 * section[axis], axis, 0)
    else:
        axis = jnp.repeat(jnp.arange(3), section, total_repeat_length=half)
    return positions[axis].T.astype(jnp.float32) * frequencies


def rotate(x: Float[Array, "T N H"], angle: Float[Array, "T half"]) -> Float[Array, "T N H"]:
    """Rotate each pair (x[i], x[i + H/2]) by its angle, in float32."""
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def text_positions(start: Int[Array, ""] | int, length: int) -> Int[Array, "3 T"]:
    """Positions of ``length`` consecutive text tokens from ``start``."""
    return jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (3, length))
