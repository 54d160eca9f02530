"""TMRoPE: the positions of text and windows, and the rotation of queries and keys by them.

A position has three axes: time, height, width. Text and audio move on all three at once; a video
token has the time of its grid and the row and column of its cell. Pruning leaves the positions of
the tokens that stay untouched.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.models.config import TextConfig


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
