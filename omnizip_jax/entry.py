"""The one way in for tokens.

``append`` packs what is to be kept of a block to the front, prefills it and describes its slots;
clips, windows of a stream, questions and answers all enter through it or, being text that is kept
whole, through ``append_text``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax.block import Block
from omnizip_jax.context import Context, Past, commit
from omnizip_jax.layout import PaddedText, padded_text
from omnizip_jax.memory import TEXT, Slots
from omnizip_jax.models.families import Config, family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params
from omnizip_jax.models.text import KVCache


def append(
    decoder: Any, cache: KVCache, past: Past, block: Block, capacity: int, fresh: bool = False
) -> tuple[KVCache, Past]:
    """Pack a block to the front of ``capacity`` slots, prefill it, and describe its slots.

    Args:
        cache: has at least ``capacity`` free slots.
        past: as the block leaves it, but for the slots and for what was lost.
        fresh: the cache is known to be empty.
    """
    packed, lost = block.packed(capacity)
    slots = past.slots.write(packed.slots, cache.length)
    count = jnp.sum(packed.keep)
    _, cache = decoder(packed.embeddings, packed.positions, cache, count, fresh=fresh)
    return cache, past.replace(slots=slots, overflow=past.overflow + lost)


@functools.partial(jax.jit, static_argnames=("config", "kernels"), donate_argnames="cache")
def append_text(
    weights: Any,
    cache: KVCache,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    count: Int[Array, ""],
    *,
    config: Config,
    kernels: Kernels,
) -> tuple[KVCache, Float[Array, " V"]]:
    """Append ``count`` text tokens to the cache; the logits after the last."""
    decoder = family(config).bound_decoder(weights, config, kernels)
    embeddings = decoder.embed(tokens)
    positions = jnp.broadcast_to(positions, (3, tokens.shape[0]))
    hidden, cache = decoder(embeddings, positions, cache, count)
    return cache, decoder.logits(hidden[count - 1][None])[0]


def read_text(
    params: Params, context: Context, text: PaddedText, start: Int[Array, ""] | int
) -> tuple[Context, Float[Array, " V"]]:
    """A context whose cache holds one text more, from a position on; the logits after it.

    The cache that is given in is used up; ``remember_text`` makes the text part of the past.
    """
    cache, logits = append_text(
        params.weights,
        context.cache,
        text.tokens,
        start + text.offsets,
        text.count,
        config=context.reading.config,
        kernels=context.reading.kernels,
    )
    return context.replace(cache=cache), logits


def remember_text(context: Context, begin: int, end: Int[Array, ""]) -> Context:
    """Make the slots from ``begin`` on one unit of text that ends before position ``end``."""
    past, length = context.past, int(context.cache.length)
    place = jnp.arange(context.capacity)
    new = (place >= begin) & (place < length)

    def mark(old: Array, value: Array | int) -> Array:
        return jnp.where(new, value, old).astype(old.dtype)

    slots = Slots(
        kind=mark(past.slots.kind, TEXT),
        unit=mark(past.slots.unit, past.unit),
        time=mark(past.slots.time, past.after),
        base=mark(past.slots.base, past.after),
        worth=mark(past.slots.worth, 1),
    )
    past = past.replace(
        slots=slots,
        time=end,
        after=end,
        base=end,
        unit=past.unit + 1,
        in_video=jnp.zeros_like(past.in_video),
    )
    return context.replace(past=past, filled=length, reached=int(end))


def read_prefix(
    params: Params, context: Context, prefix: Int[np.ndarray, " P"], capacity: int
) -> Context:
    """Prefill the prompt up to where the first clip, or a question without one, begins.

    Args:
        context: nothing yet.
        capacity: slots of the cache.
    """
    text = padded_text(prefix)
    cache = KVCache.empty(context.reading.config.text, capacity, context.cache.keys.dtype)
    context, _ = read_text(params, context.replace(cache=cache), text, 0)
    past = commit(context.past.opened(text.count, capacity), context.cache.length)
    return context.replace(past=past, filled=len(prefix), reached=len(prefix))
