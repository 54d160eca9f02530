"""Attention and its masks; no other file calls an attention implementation.

Where ``fused`` is True, half precision runs in cuDNN's kernel, and attention to a cache in our own;
everything else runs in XLA, which materialises the scores, so long sequences are processed in
blocks of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.cpu_kernels import MASKED_SCORE, attend_single, attend_tiled, slice_layer
from omnizip_jax.models.gpu_kernels import attend_to_layer
from omnizip_jax.models.quantized import QuantizedArray
from omnizip_jax.models.sharding import over_heads

QUERY_BLOCK = 512  # queries whose scores XLA materialises at a time
MAX_UNTILED = 1024  # longest sequence whose causal attention is computed without tiles
MIN_TILED_BLOCK = 256  # fewest queries that attend to a cache in tiles
MIN_LENGTH_BUCKET = 1024  # with fewer keys, a branch costs more than it saves


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    mask: Bool[Array, "#N #T S"] | None = None,
    fused: bool = False,
) -> Float[Array, "T N H"]:
    """Softmax attention, scaled by 1/sqrt(H), softmax in float32; K key heads divide N.

    ``mask`` is True where a query may attend. A query without any such key returns a finite
    average.
    """
    heads, queries, keys = q.shape[1], q.shape[0], k.shape[0]
    if fused and _fits_cudnn(q):
        if mask is None:
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        mask = jnp.broadcast_to(mask, (mask.shape[0], queries, keys))  # it needs the query axis
        return _attend_cudnn(q[None], k[None], v[None], mask[None])[0]
    if mask is None or queries <= QUERY_BLOCK:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    mask = jnp.broadcast_to(mask, (mask.shape[0], queries, keys))
    blocks = [slice(start, start + QUERY_BLOCK) for start in range(0, queries, QUERY_BLOCK)]
    return jnp.concatenate([attend(q[b], k, v, mask[:, b]) for b in blocks]).reshape(
        queries, heads, -1
    )


@jax.custom_batching.custom_vmap
def _attend_cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B #N T S"],
) -> Float[Array, "B T N H"]:
    """cuDNN's kernel; JAX's own rule for ``vmap`` requires a mask for every head."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


@_attend_cudnn.def_vmap
def _attend_cudnn_batched(axis_size: int, batched: list[bool], *arguments: Array):
    """Several batches as one larger batch."""
    whole = [
        x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, is_batched in zip(arguments, batched, strict=True)
    ]
    out = _attend_cudnn(*(x.reshape(-1, *x.shape[2:]) for x in whole))
    return out.reshape(whole[0].shape), True


def attend_causal(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    fused: bool = False,
) -> Float[Array, "T N H"]:
    """Causal self-attention of a sequence."""
    if fused and _fits_cudnn(q):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    length = q.shape[0]
    if length <= MAX_UNTILED:
        return attend(q, k, v, causal_mask(length, jnp.int32(0), length))
    return attend_tiled(q, k[None], v[None], 0, jnp.int32(0))


def attend_cached(
    q: Float[Array, "T N H"],
    keys: Float[Array, "L S K H"] | QuantizedArray,
    values: Float[Array, "L S K H"] | QuantizedArray,
    layer: Int[Array, ""] | int,
    start: Int[Array, ""],
    backend: Backend = Backend.CPU,
) -> Float[Array, "T N H"]:
    """Causal attention of a block of queries to a cache that holds the block at ``start``.

    Attention to a mostly empty cache would cost as much as to a full one. On a CPU the attended
    length is the smallest of a few static ones that includes the block; one program contains all.
    """
    queries = q.shape[0]
    if backend.fused_attention:
        return _attend_to_layer(q, keys, values, layer, start)
    if queries == 1:
        return attend_cached_batch(q, [(keys, values)], layer, start[None], backend)
    if queries >= MIN_TILED_BLOCK:
        return attend_tiled(q, keys, values, layer, start)

    def attend_to(length: int) -> Array:
        k, v = (slice_layer(x, layer, 0, length, q.dtype) for x in (keys, values))
        return attend(q, k, v, causal_mask(queries, start, length))

    return _attend_to_bucket(attend_to, start + queries, keys.shape[1])


def attend_cached_batch(
    q: Float[Array, "B N H"],
    caches: Sequence[tuple[Any, Any]],
    layer: Int[Array, ""] | int,
    starts: Int[Array, " B"],
    backend: Backend = Backend.CPU,
) -> Float[Array, "B N H"]:
    """Attention of one query to each of B caches, which hold the queries' tokens at ``starts``.

    As ``attend_cached``; on a CPU the longest sequence determines the attended length of all.
    """
    if backend.fused_attention:
        rows = zip(q[:, None], caches, starts, strict=True)
        return jnp.concatenate([_attend_to_layer(row, *kv, layer, at) for row, kv, at in rows])

    def attend_to(length: int) -> Array:
        rows = []
        for row, (keys, values), start in zip(q[:, None], caches, starts, strict=True):
            k, v = (slice_layer(x, layer, 0, length, q.dtype) for x in (keys, values))
            attend_one = attend if backend.on_mesh else attend_single
            rows.append(attend_one(row, k, v, causal_mask(1, start, length)))
        return jnp.concatenate(rows)

    return _attend_to_bucket(attend_to, jnp.max(starts) + 1, caches[0][0].shape[1])


def _attend_to_layer(q: Array, keys: Any, values: Any, layer: Any, start: Array) -> Array:
    """``attend_to_layer`` on each device of a mesh for its own heads."""
    return over_heads(attend_to_layer, q, keys, values, jnp.int32(layer), start)


def _attend_to_bucket(
    attend_to: Callable[[int], Array], needed: Int[Array, ""], slots: int
) -> Float[Array, "T N H"]:
    """Attention to the smallest length bucket that includes ``needed`` slots.

    Each layer makes this choice. A single choice around the loop over layers makes XLA copy the
    whole cache into its branch: decoding took 1.8 times as long with 8192 slots on a CPU.
    """
    lengths = length_buckets(slots)
    if len(lengths) == 1:
        return attend_to(slots)
    choice = jnp.sum(needed > jnp.array(lengths[:-1]))
    return jax.lax.switch(choice, [lambda n=n: attend_to(n) for n in lengths])


def length_buckets(slots: int) -> list[int]:
    """Attended lengths of a cache: 1/8, 1/4, 3/8, 1/2 and 3/4 if long enough, and the whole."""
    parts = {-(-slots * eighths // 8) for eighths in (1, 2, 3, 4, 6)}
    return [*sorted(n for n in parts if n >= MIN_LENGTH_BUCKET), slots]


def attention_weights(
    q: Float[Array, "1 N H"], k: Float[Array, "S K H"], last: Int[Array, ""]
) -> Float[Array, "N S"]:
    """Softmax weights of one query over the keys up to ``last``, float32."""
    heads, size = q.shape[1:]
    q = q.reshape(k.shape[1], -1, size)
    score = jnp.einsum("kgh,skh->kgs", q, k, preferred_element_type=jnp.float32) * size**-0.5
    score = jnp.where(jnp.arange(k.shape[0]) <= last, score, MASKED_SCORE)
    return jax.nn.softmax(score).reshape(heads, -1)


def causal_mask(queries: int, start: Int[Array, ""], keys: int) -> Bool[Array, "1 T S"]:
    """Causal mask of a block of queries that was written to a cache at ``start``."""
    return (jnp.arange(keys) <= start + jnp.arange(queries)[:, None])[None]


def _fits_cudnn(q: Array) -> bool:
    # One query is bound by reading the cache, which XLA does well and without a full mask.
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[0] > 1 and q.shape[2] % 8 == 0
