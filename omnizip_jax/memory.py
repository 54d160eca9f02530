"""What a stream forgets when its cache is full: a gather over the cache, and a rotation.

Every slot of the cache belongs to a unit: a window, the start tokens of a video, or a turn of the
dialogue. Choosing what stays is a matter of priorities; the rest is the same for every memory: kept
slots move to the front, time closes up where whole units left, and the kept keys are rotated to
their new positions. What remains is laid out as if the stream had begun with it.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.models import rope
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.text import KVCache

Memory = Literal["recent", "fading"]
DEFAULT_MEMORY: Memory = "fading"  # docs/streaming.md has the curve

# Kinds of slots. The prefix never leaves; start tokens leave with the last token of their video.
PREFIX, TEXT, START, AUDIO, VIDEO = range(5)


class Slots(struct.PyTreeNode):
    """What is known of every slot of the cache, in the order of time.

    Attributes:
        kind: PREFIX, TEXT, START, AUDIO or VIDEO.
        unit: number of the window, turn or start that wrote it; grows along the cache.
        time: position at which its unit begins.
        base: position at which its video begins, from which rows and columns count; for text the
            same as ``time``. Grows along the cache.
        worth: how much it is worth remembering, 1 for an average token; the less, the sooner it
            fades.
    """

    kind: Int[Array, " S"]
    unit: Int[Array, " S"]
    time: Int[Array, " S"]
    base: Int[Array, " S"]
    worth: Float[Array, " S"]

    @classmethod
    def empty(cls, slots: int) -> Slots:
        zeros = jnp.zeros(slots, jnp.int32)
        return cls(zeros, zeros, zeros, zeros, jnp.ones(slots, jnp.float32))

    def write(self, block: Slots, start: Int[Array, ""]) -> Slots:
        """Describe a block that is written to the cache at ``start``."""

        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (start,))

        return jax.tree.map(update, self, block)


def survivors(
    slots: Slots,
    length: Int[Array, ""],
    now: Int[Array, ""],
    memory: Memory,
    low_water: int,
    span: int,
) -> Bool[Array, " S"]:
    """Which slots stay: the prefix, and at most ``low_water`` slots in all.

    "recent" lets the oldest units leave. "fading" lets those slots leave that are old and worth
    little: of a unit of age a about 1/a of the newest unit's tokens remain, so that long ago is
    remembered thinly, and more where it was worth more. Slots of equal priority leave together, so
    a turn is never cut.

    Args:
        length: slots in use.
        now: position of the next unit.
        span: positions that the survivors may reach back from ``now``.
    """
    exists = jnp.arange(slots.unit.shape[0]) < length
    age = (jnp.max(jnp.where(exists, slots.unit, 0)) - slots.unit + 1).astype(jnp.float32)
    priority = age if memory == "recent" else age / jnp.maximum(slots.worth, 1e-6)
    priority = jnp.where(slots.kind == PREFIX, 0.0, priority)
    ranked = jnp.sort(jnp.where(exists, priority, jnp.inf))
    base = jnp.where(exists, slots.base, jnp.iinfo(jnp.int32).max)
    last_of_video = jnp.searchsorted(base, base, side="right") - 1
    prefix = exists & (slots.kind == PREFIX)

    def choice(room: Array | int) -> tuple[Array, Array]:
        """What stays of all else, at most ``room`` with the prefix, and the starts it needs."""
        stays = exists & (priority < ranked[room]) & (now - slots.time <= span)
        stays &= slots.kind != START
        so_far = jnp.cumsum(stays)
        return stays, exists & (slots.kind == START) & (so_far[last_of_video] > so_far)

    _, starts = choice(low_water)
    stays, starts = choice(jnp.maximum(low_water - jnp.sum(starts), 0))  # fewer need no more
    return stays | prefix | starts


def forget(
    cache: KVCache,
    slots: Slots,
    keep: Bool[Array, " S"],
    now: Int[Array, ""],
    origin: Int[Array, ""],
    config: TextConfig,
) -> tuple[KVCache, Slots, Int[Array, ""]]:
    """Gather the kept slots to the front and rotate their keys to the new positions.

    Args:
        now: position of the next unit.
        origin: position right after the prefix, where the first remaining unit will begin.

    Returns:
        The cache, the slots, and the new position of the next unit.
    """
    size = keep.shape[0]
    # How long each unit lasts, by where the next one begins; unused slots come after everything.
    unit = jnp.where(jnp.arange(size) < cache.length, slots.unit, jnp.iinfo(jnp.int32).max)
    following = jnp.searchsorted(unit, unit, side="right")
    begins_next = jnp.where(following < cache.length, slots.time[following % size], now)
    lasts = begins_next - slots.time

    (order,) = jnp.nonzero(keep, size=size, fill_value=size - 1)
    length = jnp.sum(keep).astype(jnp.int32)
    old, lasts = jax.tree.map(lambda x: x[order], (slots, lasts))
    moves = (jnp.arange(size) < length) & (old.kind != PREFIX)
    first_of_unit = moves & ((old.unit != jnp.roll(old.unit, 1)) | ~jnp.roll(moves, 1))
    elapsed = jnp.cumsum(jnp.where(first_of_unit, lasts, 0))
    time = jnp.where(moves, origin + elapsed - lasts, old.time)
    video = jax.lax.cummax(jnp.where(moves & (old.kind == START), time + 1, 0))
    base = jnp.where(moves & (old.kind != TEXT), video, time)

    time_shift = time - old.time
    place_shift = jnp.where(old.kind == VIDEO, base - old.base, time_shift)
    shift = jnp.where(moves, jnp.stack([time_shift, place_shift, place_shift]), 0)
    angle = rope.angles(shift, config)

    def move(carry: tuple[Array, Array], layer: Array) -> tuple[tuple[Array, Array], None]:
        keys, values = carry
        moved = rope.rotate(keys[layer][order], angle)
        keys = jax.lax.dynamic_update_index_in_dim(keys, moved, layer, 0)
        values = jax.lax.dynamic_update_index_in_dim(values, values[layer][order], layer, 0)
        return (keys, values), None

    layers = jnp.arange(cache.keys.shape[0])
    (keys, values), _ = jax.lax.scan(move, (cache.keys, cache.values), layers)
    moved_slots = old.replace(time=time, base=base)
    return KVCache(keys, values, length), moved_slots, origin + elapsed[-1]
