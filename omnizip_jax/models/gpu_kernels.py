"""Kernels written for a GPU, in Pallas; ``attention.py`` chooses them.

``python -m benchmarks.ahead`` shows what they save; their times have not been measured.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from omnizip_jax.models.cpu_kernels import MASKED_SCORE
from omnizip_jax.models.quantized import QuantizedArray, is_quantized

MIN_QUERY_TILE, QUERY_TILE = 16, 64  # rows of a tensor core's product, and of a large tile
KEY_TILE_BYTES = 128  # of one column of keys: 64 keys in half precision
PROGRAMS = 128  # of one launch: an H200 has 132 multiprocessors


def attend_to_layer(
    q: Float[Array, "T N H"],
    keys: Float[Array, "L S K H"] | QuantizedArray,
    values: Float[Array, "L S K H"] | QuantizedArray,
    layer: Int[Array, ""] | int,
    start: Int[Array, ""],
) -> Float[Array, "T N H"]:
    """Causal attention of a block of queries to a cache that holds the block at ``start``.

    Keys and values are read from the stack of all layers, up to the last slot in use: no copy of a
    layer, no mask in memory, and no branches for different lengths. Each program has the queries
    of one key head as its rows; where they are few, several programs share the keys
    (FlashDecoding), and a second kernel combines their results. H is a power of two of at least 16.
    """
    queries, heads, size = q.shape
    key_heads, width = keys.shape[2], KEY_TILE_BYTES // q.dtype.itemsize
    rows = queries * heads // key_heads
    tile = MIN_QUERY_TILE if rows <= MIN_QUERY_TILE else QUERY_TILE
    tiles = -(-rows // tile)
    splits = 1 << max((PROGRAMS // (tiles * key_heads)).bit_length() - 1, 0)
    shape = splits, queries * heads
    out, total = pl.pallas_call(
        functools.partial(_attend_tile, queries=queries, tile=tile, width=width, splits=splits),
        grid=(tiles, key_heads, splits),
        out_shape=(
            jax.ShapeDtypeStruct((*shape, size), jnp.float32 if splits > 1 else q.dtype),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        name="attend_to_layer",
    )(jnp.int32(layer), start, q.reshape(-1, size), keys, values)
    if splits == 1:
        return out.reshape(queries, heads, size)
    out = pl.pallas_call(
        _merge_parts,
        grid=(queries * heads,),
        in_specs=[
            pl.BlockSpec((splits, None, size), lambda row: (0, row, 0)),
            pl.BlockSpec((splits, None), lambda row: (0, row)),
        ],
        out_specs=pl.BlockSpec((None, size), lambda row: (row, 0)),
        out_shape=jax.ShapeDtypeStruct((queries * heads, size), q.dtype),
        compiler_params=triton.CompilerParams(num_warps=4),
        name="merge_parts",
    )(out, total)
    return out.reshape(queries, heads, size)


def _attend_tile(
    layer: Any,
    start: Any,
    q: Any,
    keys: Any,
    values: Any,
    out: Any,
    total: Any,
    *,
    queries: int,
    tile: int,
    width: int,
    splits: int,
) -> None:
    """Attention of one tile of rows to one part of the keys of their head; arguments are refs.

    Row r belongs to query ``r // group``. Writes the result and the logarithm of its weights' sum.
    """
    number, head, split = (pl.program_id(axis) for axis in range(3))
    key_heads, size = keys.shape[2:]
    heads = q.shape[0] // queries
    group = heads // key_heads
    layer, start = layer[()], start[()]
    row = number * tile + jnp.arange(tile)
    query = row // group
    exists = query < queries
    place = query * heads + head * group + row % group
    element = place[:, None], jnp.arange(size)[None]
    q = triton.load(q.at[element], mask=exists[:, None], other=0)

    def add_keys(block: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = carry
        slot = block * width + jnp.arange(width)
        used, slots = slot < start + queries, pl.ds(block * width, width)

        def load(cache: Any) -> tuple[Array, Array | float]:
            """Keys or values, and their scales."""
            if not is_quantized(cache):
                return triton.load(cache.at[layer, slots, head], mask=used[:, None], other=0), 1.0
            integers = triton.load(cache.values.at[layer, slots, head], mask=used[:, None], other=0)
            scales = cache.scales.at[layer, slots, head, jnp.int32(0)]
            return integers.astype(q.dtype), triton.load(scales, mask=used, other=0)

        (key, key_scale), (value, value_scale) = load(keys), load(values)
        score = triton.dot(q, key, trans_b=True) * (key_scale * size**-0.5)
        score = jnp.where(slot <= start + query[:, None], score, MASKED_SCORE)
        new = jnp.maximum(highest, score.max(1))
        weight, decay = jnp.exp(score - new[:, None]), jnp.exp(highest - new)
        part = triton.dot((weight * value_scale).astype(value.dtype), value)
        return new, total * decay + weight.sum(1), out * decay[:, None] + part

    share = pl.cdiv(pl.cdiv(start + queries, width), splits)
    last = start + jnp.minimum((number * tile + tile - 1) // group, queries - 1)
    end = jnp.minimum((split + 1) * share, last // width + 1)
    zero = jnp.zeros(tile, jnp.float32)
    initial = zero + MASKED_SCORE, zero, jnp.zeros((tile, size), jnp.float32)
    highest, weights, result = jax.lax.fori_loop(split * share, end, add_keys, initial)
    weights = jnp.maximum(weights, jnp.finfo(jnp.float32).tiny)  # a part without keys
    result = (result / weights[:, None]).astype(out.dtype)
    triton.store(out.at[split, *element], result, mask=exists[:, None])
    triton.store(total.at[split, place], highest + jnp.log(weights), mask=exists)


def _merge_parts(parts: Any, totals: Any, out: Any) -> None:
    """Combine a row's attention to several parts of the keys; arguments are refs."""
    weight = jnp.exp(totals[...] - jnp.max(totals[...]))
    merged = jnp.sum(weight[:, None] * parts[...], axis=0) / jnp.sum(weight)
    out[...] = merged.astype(out.dtype)
