"""Capacity of a KV cache: resizing, and eviction from the cache of a stream.

Every slot belongs to a unit: a window, the start tokens of a video, or a text. Eviction selects
slots by priority, gathers them to the front, closes the gaps that whole units leave in time, and
rotates the keys to their new positions, as if the stream had begun with what is retained.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from omnizip_jax.inference.context import Context, Memory, SlotMetadata, StreamState
from omnizip_jax.inference.sequence import CACHE_BUCKETS, bucket
from omnizip_jax.models import rope
from omnizip_jax.models.backend import jax_defaults
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.quantized import dequantized, is_quantized, quantize_vectors
from omnizip_jax.models.registry import Config
from omnizip_jax.types import TokenKind


@jax_defaults()
def ensure_capacity(context: Context, slots: int, positions: int) -> Context:
    """Ensure a number of free slots and positions: evict in a stream, otherwise resize the cache.

    Raises:
        ValueError: that many cannot be freed, or a method dropped tokens before.
    """
    most = context.prefill_config.config.text.max_positions

    def fits(context: Context) -> bool:
        enough = context.used_slots + slots <= context.capacity
        return enough and context.used_positions + positions <= most

    if fits(context):
        return context
    context = refresh_usage(context)
    if not fits(context):
        if context.retention.memory is not None:
            context = refresh_usage(evict(context))
        elif context.used_positions + positions <= most:
            context = _resize(context, bucket(context.used_slots + slots, CACHE_BUCKETS))
    if not fits(context):
        raise ValueError(
            f"no capacity for {slots} more tokens: {context.used_slots} of {context.capacity} "
            f"slots and {context.used_positions} of {most} positions are in use "
            "and cannot be evicted; take a larger capacity, a lower low_water, or less media"
        )
    return context


@jax_defaults()
def refresh_usage(context: Context) -> Context:
    """Read the slots and positions in use from the device; lost tokens are a ``ValueError``."""
    state, cache = context.state, context.cache
    length = (cache[-1] if isinstance(cache, tuple) else cache).length  # segments: pruned prefill
    used_slots, used_positions, overflow = jax.device_get(
        (length, jnp.maximum(state.time, state.after), state.overflow)
    )
    if overflow > 0:
        raise ValueError(
            f"{context.prefill_config.method} kept {overflow} tokens more than its bounds, and "
            "they were lost: the total of its `plan`, its `step_bound` or the `bound` of a stage "
            "is too low"
        )
    return context.replace(used_slots=int(used_slots), used_positions=int(used_positions))


def _resize(context: Context, capacity: int) -> Context:
    """The same context with a larger cache."""
    cache, slots = _pad_slots(context.cache, context.state.slots, more=capacity - context.capacity)
    return context.replace(cache=cache, state=context.state.replace(slots=slots))


@functools.partial(jax.jit, static_argnames="more")
def _pad_slots(cache: KVCache, slots: SlotMetadata, *, more: int) -> tuple[KVCache, SlotMetadata]:
    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    keys, values = jax.tree.map(lambda x: pad(x, 1), (cache.keys, cache.values))
    cache = cache.replace(keys=keys, values=values)
    return cache, jax.tree.map(lambda x: pad(x, 0), slots)


def evict(context: Context) -> Context:
    """Evict slots until at most ``low_water`` remain; the cache of the context is donated."""
    memory = context.retention.memory
    assert memory is not None, "a context of whole clips is resized instead"
    cache, state = _evict(
        context.cache,
        context.state,
        jnp.int32(context.retention.low_water),
        config=context.prefill_config.config,
        memory=memory,
    )
    return context.replace(cache=cache, state=state)


@functools.partial(jax.jit, static_argnames=("config", "memory"), donate_argnames="cache")
def _evict(
    cache: KVCache,
    state: StreamState,
    low_water: Int[Array, ""],
    *,
    config: Config,
    memory: Memory,
) -> tuple[KVCache, StreamState]:
    """The program of ``evict``."""
    slots, text = state.slots, config.text
    keep = select_kept_slots(
        slots, cache.length, state.time, memory, low_water, span=text.max_positions // 2
    )
    of_video = (slots.kind == TokenKind.START) & (slots.base == state.base)
    cache, slots, now = evict_slots(cache, slots, keep, state.time, state.origin, text)
    return cache, state.replace(
        slots=slots,
        time=now,
        after=jnp.maximum(state.after + now - state.time, state.origin),
        # If no token of the open video is retained, the next window opens a new one.
        in_video=state.in_video & jnp.any(keep & of_video),
        base=slots.base[cache.length - 1],
    )


def select_kept_slots(
    slots: SlotMetadata,
    length: Int[Array, ""],
    now: Int[Array, ""],
    memory: Memory,
    low_water: Int[Array, ""] | int,
    span: int,
) -> Bool[Array, " S"]:
    """Select the slots to keep: the prefix, and at most ``low_water`` slots in all.

    "recent" evicts the oldest units. "fading" evicts the slots with the highest ratio of age to
    importance: of a unit of age a about 1/a of the newest unit's tokens are kept, more where they
    are important. Slots of equal priority are evicted together, so a text is never cut.

    Args:
        length: slots in use.
        now: position of the next unit.
        span: the most positions that a kept slot may lie before ``now``.
    """
    exists = jnp.arange(slots.unit.shape[0]) < length
    age = (jnp.max(jnp.where(exists, slots.unit, 0)) - slots.unit + 1).astype(jnp.float32)
    priority = age if memory == "recent" else age / jnp.maximum(slots.importance, 1e-6)
    priority = jnp.where(slots.kind == TokenKind.PREFIX, 0.0, priority)
    ranked = jnp.sort(jnp.where(exists, priority, jnp.inf))
    base = jnp.where(exists, slots.base, jnp.iinfo(jnp.int32).max)
    last_of_video = jnp.searchsorted(base, base, side="right") - 1
    prefix = exists & (slots.kind == TokenKind.PREFIX)

    def select(most: Array | int) -> tuple[Array, Array]:
        """At most ``most`` slots, prefix included, and the start tokens of their videos."""
        kept = exists & (priority < ranked[most]) & (now - slots.time <= span)
        kept &= slots.kind != TokenKind.START
        so_far = jnp.cumsum(kept)
        return kept, exists & (slots.kind == TokenKind.START) & (so_far[last_of_video] > so_far)

    _, starts = select(low_water)
    kept, starts = select(jnp.maximum(low_water - jnp.sum(starts), 0))  # fewer need no more starts
    return kept | prefix | starts


def evict_slots(
    cache: KVCache,
    slots: SlotMetadata,
    keep: Bool[Array, " S"],
    now: Int[Array, ""],
    origin: Int[Array, ""],
    config: TextConfig,
) -> tuple[KVCache, SlotMetadata, Int[Array, ""]]:
    """Gather the kept slots to the front and rotate their keys to the new positions.

    Args:
        now: position of the next unit.
        origin: position right after the prefix, where the first kept unit will begin.

    Returns:
        The cache, the slots, and the new position of the next unit.
    """
    size = keep.shape[0]
    # Duration of each unit: up to the begin of the next one; unused slots come last.
    unit = jnp.where(jnp.arange(size) < cache.length, slots.unit, jnp.iinfo(jnp.int32).max)
    following = jnp.searchsorted(unit, unit, side="right")
    next_begin = jnp.where(following < cache.length, slots.time[following % size], now)
    duration = next_begin - slots.time

    (order,) = jnp.nonzero(keep, size=size, fill_value=size - 1)
    length = jnp.sum(keep).astype(jnp.int32)
    old, duration = jax.tree.map(lambda x: x[order], (slots, duration))
    moves = (jnp.arange(size) < length) & (old.kind != TokenKind.PREFIX)
    first_of_unit = moves & ((old.unit != jnp.roll(old.unit, 1)) | ~jnp.roll(moves, 1))
    elapsed = jnp.cumsum(jnp.where(first_of_unit, duration, 0))
    time = jnp.where(moves, origin + elapsed - duration, old.time)
    start = moves & (old.kind == TokenKind.START)
    video = jax.lax.cummax(jnp.where(start, time + old.base - old.time, 0))
    base = jnp.where(moves & (old.kind != TokenKind.TEXT), video, time)

    time_shift = time - old.time
    place_shift = jnp.where(old.kind == TokenKind.VIDEO, base - old.base, time_shift)
    shift = jnp.where(moves, jnp.stack([time_shift, place_shift, place_shift]), 0)
    angle = rope.angles(shift, config)

    def move(carry: Any, layer: Array) -> tuple[Any, None]:
        keys, values = jax.tree.map(lambda x: x[layer][order], carry)
        moved = rope.rotate(dequantized(keys, jnp.float32), angle)
        moved = quantize_vectors(moved) if is_quantized(keys) else moved

        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(old, new, layer, 0)

        return jax.tree.map(update, carry, (moved, values)), None

    layers = jnp.arange(cache.keys.shape[0])
    (keys, values), _ = jax.lax.scan(move, (cache.keys, cache.values), layers)
    moved_slots = old.replace(time=time, base=base)
    return KVCache(keys, values, length), moved_slots, origin + elapsed[-1]
