"""Kept tokens to the front: what makes pruning save time."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def front(keep: Bool[Array, " N"], capacity: int) -> tuple[Int[Array, " C"], Bool[Array, " C"]]:
    """Where the kept tokens are, in their order, in the front of ``capacity`` slots.

    Returns:
        An index into the tokens for every slot (0 in unused ones), and which slots are used.
    """
    (index,) = jnp.nonzero(keep, size=capacity, fill_value=0)
    return index, jnp.arange(capacity) < jnp.sum(keep)


def pack(
    embeddings: Float[Array, "N D"],
    positions: Int[Array, "3 N"],
    keep: Bool[Array, " N"],
    capacity: int,
) -> tuple[Float[Array, "C D"], Int[Array, "3 C"], Int[Array, ""]]:
    """Move the kept tokens to the front of ``capacity`` slots, in their order.

    Args:
        embeddings: N tokens.
        positions: their position ids (time, height, width), kept as they are.
        keep: tokens that stay.
        capacity: static number C of slots, at least the number of kept tokens (``kept_bound``);
            what does not fit is dropped from the end.

    Returns:
        Embeddings and positions, zero in the unused slots, and the number of used slots.
    """
    index, used = front(keep, capacity)
    return (
        jnp.where(used[:, None], embeddings[index], 0),
        jnp.where(used, positions[:, index], 0),
        jnp.sum(used),
    )
