"""Room for what comes: the cache grows, or a stream forgets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from omnizip_jax.context import Context, Past
from omnizip_jax.layout import bucket
from omnizip_jax.memory import START, Memory, forget, survivors
from omnizip_jax.models.families import Config
from omnizip_jax.models.text import KVCache


def make_room(context: Context, slots: int, positions: int) -> Context:
    """Free so many slots and positions: forget, or grow where nothing is ever forgotten.

    Raises:
        ValueError: it cannot be done, or tokens were lost before.
    """
    if _fits(context, slots, positions):
        return context
    context = measured(context)
    if not _fits(context, slots, positions):
        if context.keeping.memory is not None:
            context = measured(thin(context))
        elif _reaches(context, positions):
            context = _grow(context, bucket(context.filled + slots))
    if not _fits(context, slots, positions):
        raise ValueError(
            f"no room for {slots} more tokens: {context.filled} of {context.capacity} slots and "
            f"{context.reached} of {context.reading.config.text.max_positions} positions are in "
            "use and may not be forgotten; take a larger capacity, a lower low_water, or less media"
        )
    return context


def _fits(context: Context, slots: int, positions: int) -> bool:
    return context.filled + slots <= context.capacity and _reaches(context, positions)


def _reaches(context: Context, positions: int) -> bool:
    return context.reached + positions <= context.reading.config.text.max_positions


def measured(context: Context) -> Context:
    """Read from the device how much is in use.

    Raises:
        ValueError: a method kept more than its bound.
    """
    past = context.past
    filled, reached, overflow = jax.device_get(
        (context.cache.length, jnp.maximum(past.time, past.after), past.overflow)
    )
    if overflow > 0:
        raise ValueError(
            f"{context.reading.method} kept {overflow} tokens more than its bound, and they were "
            "lost: its `bound` or `step_bound` is too low"
        )
    return context.replace(filled=int(filled), reached=int(reached))


def _grow(context: Context, capacity: int) -> Context:
    """The same context in a larger cache."""
    more = capacity - context.capacity

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    cache = context.cache
    slots = jax.tree.map(lambda x: pad(x, 0), context.past.slots)
    return context.replace(
        cache=cache.replace(keys=pad(cache.keys, 1), values=pad(cache.values, 1)),
        past=context.past.replace(slots=slots),
    )


def thin(context: Context) -> Context:
    """Forget down to the low-water mark; the context, a stream's, is used up."""
    memory = context.keeping.memory
    assert memory is not None, "what was read from whole clips grows instead"
    cache, past = _forget(
        context.cache,
        context.past,
        config=context.reading.config,
        memory=memory,
        low_water=context.keeping.low_water,
    )
    return context.replace(cache=cache, past=past)


@functools.partial(
    jax.jit, static_argnames=("config", "memory", "low_water"), donate_argnames="cache"
)
def _forget(
    cache: KVCache, past: Past, *, config: Config, memory: Memory, low_water: int
) -> tuple[KVCache, Past]:
    """Thin the history to the low-water mark and close up the time; only the cache is donated."""
    slots, text = past.slots, config.text
    keep = survivors(
        slots, cache.length, past.time, memory, low_water, span=text.max_positions // 2
    )
    of_video = (slots.kind == START) & (slots.base == past.base)
    cache, slots, now = forget(cache, slots, keep, past.time, past.origin, text)
    return cache, past.replace(
        slots=slots,
        time=now,
        after=jnp.maximum(past.after + now - past.time, past.origin),
        # If nothing of the open video is left, the next window opens one.
        in_video=past.in_video & jnp.any(keep & of_video),
        base=slots.base[cache.length - 1],
    )
