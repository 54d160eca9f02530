"""Packing of kept tokens into the front of a smaller array, so that pruning saves time."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num


def front(keep: Bool[Array, " N"], capacity: int) -> tuple[Int[Array, " C"], Bool[Array, " C"]]:
    """Indices of the kept tokens, in order, for the front of ``capacity`` slots.

    Returns:
        An index into the tokens for every slot (0 in unused ones), and which slots are used.
    """
    (index,) = jnp.nonzero(keep, size=capacity, fill_value=0)
    return index, jnp.arange(capacity) < jnp.sum(keep)


def unpacked(values: Num[Array, " C"], keep: Bool[Array, " N"]) -> Num[Array, " N"]:
    """Values of packed tokens at the places of the tokens, 0 for those that were not kept."""
    place = jnp.cumsum(keep) - 1
    there = keep & (place < len(values))
    return jnp.where(there, values[jnp.clip(place, 0, len(values) - 1)], 0)
