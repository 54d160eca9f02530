"""Kernels written for XLA on a CPU; each names the figure that justifies it (docs/performance.md).

They are correct on every device. ``backend.py`` and ``attention.py`` choose between them and the
plain operations.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.models.quantized import GROUP, QuantizedArray, dequantized, is_quantized

MASKED_SCORE = -1e30  # finite, so that a row of masked scores has a finite softmax
TILED_ROWS = 8  # up to this many rows, a product costs less than a copy of its weights
FUSED_INPUTS = 4096  # of a row that XLA fuses into a product: 16 KiB
WEIGHT_TILE_BYTES = 2**17  # row serve.batch: 2.7 ms a token; 3.0 with 2**16, 3.5 with 2**18
QUANTIZED_TILE_VALUES = 2**16  # a few rows: 27 ms for three [11008, 2048]; 35 with half, 41 twice
LARGE_TILE_VALUES = 2**17  # one row, or more than a few
MANY_ROWS = 512  # a product with so many takes longer than the conversion of the whole matrix
LEAST_TILE_ROWS = 16
QUERY_TILE, KEY_TILE = 128, 512


def hold_in_loop(weights: Any, index: jax.Array) -> tuple[Any, jax.Array]:
    """Keep XLA's conversions of weights inside the loop over ``index`` that uses them.

    XLA on a CPU computes in float32. It would convert bfloat16 weights before the loop, since that
    is the same in every iteration, and a whole stack before a layer is sliced from it: twice the
    memory of all weights in addition. The barrier ties them to the iteration. Rows memory.*: at
    most 1.15 times the weights of the 3B, where decoding needed 13.8 GiB of temporaries.
    """
    return jax.lax.optimization_barrier((weights, index))


class StackedMatrix(struct.PyTreeNode):
    """A matrix [O, I] of one layer that is read from the stack of all layers.

    Of a mixture of experts it is all matrices [E, O, I] of the layer; ``expert`` selects one.

    XLA on a CPU copies a layer's matrix out of the stack, or a quantised one converted, to memory
    and back, before a product with several rows or with a long one. Row serve.batch: 2.3 times one
    sequence after another; 2.7 instead of 4.0 ms of processor time a token.
    """

    stack: Float[Array, "*L O I"] | QuantizedArray
    index: Int[Array, ""]

    def expert(self, number: Int[Array, ""]) -> StackedMatrix:
        """The matrix of one expert, in the stack of all layers and experts."""
        experts = self.stack.shape[1]
        stack = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.stack)
        return StackedMatrix(stack, self.index * experts + number)

    def apply(self, x: Float[Array, "T I"]) -> Float[Array, "T O"]:
        """``x @ matrix.T`` in tiles of rows that stay in a core's cache between copy and use.

        Many rows are multiplied by a whole quantised matrix: 67 instead of 91 ms for 2,048 rows and
        [2752, 512] in 8 bits, and 63 in bfloat16 (row quantized.prefill_int8).
        """
        _, outputs, inputs = self.stack.shape
        if isinstance(self.stack, QuantizedArray) and len(x) >= MANY_ROWS:
            stack, index = hold_in_loop(self.stack, self.index)
            matrix = jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, index, 0, False), stack)
            return matrix.multiply(x.astype(jnp.float32)).astype(x.dtype)
        few = 1 < len(x) <= TILED_ROWS
        if isinstance(self.stack, QuantizedArray):
            values = QUANTIZED_TILE_VALUES if few else LARGE_TILE_VALUES
        else:
            values = WEIGHT_TILE_BYTES // self.stack.dtype.itemsize if few else LARGE_TILE_VALUES
        rows = min(max(values // inputs, LEAST_TILE_ROWS), outputs)
        dtype, x = x.dtype, x.astype(jnp.float32)  # in which XLA on a CPU computes

        def add(tile: Array, out: Array) -> Array:
            start = jnp.minimum(tile * rows, outputs - rows)  # the last one may overlap
            stack, start = hold_in_loop(self.stack, start)

            def slice_rows(x: Array) -> Array:
                return jax.lax.dynamic_slice(x, (self.index, start, 0), (1, rows, x.shape[2]))[0]

            part = _multiply(x, jax.tree.map(slice_rows, stack))
            return jax.lax.dynamic_update_slice(out, part, (0, start))

        out = jnp.zeros((len(x), outputs), jnp.float32)
        return jax.lax.fori_loop(0, -(-outputs // rows), add, out).astype(dtype)


def _multiply(x: Float[Array, "T I"], matrix: Any) -> Float[Array, "T O"]:
    """``x @ matrix.T`` for a tile, quantised or not.

    XLA fuses a product with one row of up to 16 KiB and the conversion of the matrix. A longer row,
    and a few rows with 4 bits, are multiplied by groups of inputs, which XLA does in one pass too:
    one layer's [2048, 11008] takes 11 instead of 230 ms in float32, 7 in 8 bits and 5 in 4.
    """
    quantized = is_quantized(matrix)
    long = len(x) == 1 and x.shape[1] > FUSED_INPUTS
    if not (long or (quantized and matrix.bits == 4 and len(x) <= TILED_ROWS)):
        return matrix.multiply(x) if quantized else x @ matrix.astype(x.dtype).T
    group = math.gcd(x.shape[1], GROUP)
    integers = (matrix.grouped() if quantized else matrix).reshape(len(matrix), -1, group)
    groups = jax.lax.optimization_barrier(integers.astype(x.dtype))
    sums = jnp.einsum("tgi,ogi->tog", x.reshape(len(x), -1, group), groups)
    return jnp.sum(sums * matrix.scales if quantized else sums, axis=-1)


def attend_single(
    q: Float[Array, "1 N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    mask: Bool[Array, "1 1 S"],
) -> Float[Array, "1 N H"]:
    """Attention of one query, with one product for the keys of all K heads.

    The queries form a matrix [N, K H] that is zero outside their own key head, so that keys and
    values are read as matrices [S, K H]; a product for each key head would copy them first. It
    takes K times the operations, which reading the cache hides. Row decode.vs_transformers; log,
    "one query": attention to 5,468 tokens 6.2 to 2.3 ms, a token 17.9 to 14.0 ms.
    """
    _, heads, size = q.shape
    slots, key_heads = k.shape[:2]
    group = heads // key_heads
    own = jnp.eye(key_heads, dtype=q.dtype)[:, None, :, None]
    q = (q.reshape(key_heads, group, 1, size) * own).reshape(heads, -1)
    k, v = k.reshape(slots, -1), v.reshape(slots, -1)
    score = jnp.einsum("nd,sd->ns", q, k, preferred_element_type=jnp.float32) * size**-0.5
    weight = jax.nn.softmax(jnp.where(mask[0], score, MASKED_SCORE)).astype(v.dtype)
    out = (weight @ v).reshape(key_heads, group, key_heads, size)
    return jnp.einsum("kgkh->kgh", out).reshape(1, heads, size)


def slice_layer(
    cache: Float[Array, "L S K H"] | QuantizedArray,
    layer: Int[Array, ""] | int,
    start: Int[Array, ""] | int,
    slots: int,
    dtype: jnp.dtype,
) -> Float[Array, "slots K H"]:
    """Some slots of one layer; dequantised, if they are quantised."""

    def take(x: Array) -> Array:
        return jax.lax.dynamic_slice(x, (layer, start, 0, 0), (1, slots, *x.shape[2:]))[0]

    return dequantized(jax.tree.map(take, cache), dtype)


def attend_tiled(
    q: Float[Array, "T N H"],
    keys: Float[Array, "L S K H"] | QuantizedArray,
    values: Float[Array, "L S K H"] | QuantizedArray,
    layer: Int[Array, ""] | int,
    start: Int[Array, ""],
) -> Float[Array, "T N H"]:
    """Causal attention in tiles that fit a processor's cache (FlashAttention's recurrence).

    The queries are those of the slots from ``start`` on. Each tile of queries passes over the tiles
    of keys up to its own position, with a running maximum and sum of the softmax; scores exist only
    inside a tile. Forward only: the number of iterations is data to XLA. Rows prefill.*; log,
    "decoder attention in tiles": attention to 5,632 tokens 1.30 to 0.44 s of CPU time, temporaries
    of the full prefill 845 to 160 MB.
    """
    length, heads, size = q.shape
    dtype = q.dtype
    slots, key_heads = keys.shape[1:3]
    tiles, width = -(-length // QUERY_TILE), min(KEY_TILE, slots)
    group = heads // key_heads
    # One product per key head: the queries that share it are its rows.
    q = jnp.pad(q, ((0, -length % QUERY_TILE), (0, 0), (0, 0)))
    q = (q.astype(jnp.float32) * size**-0.5).reshape(tiles, QUERY_TILE, key_heads, group, size)
    q = q.transpose(0, 2, 1, 3, 4).reshape(tiles, key_heads, QUERY_TILE * group, size)

    def attend_tile(tile: tuple[Array, Array]) -> Array:
        index, query = tile
        first = start + index * QUERY_TILE
        row = first + jnp.repeat(jnp.arange(QUERY_TILE), group)[:, None]

        def add_keys(j: Array, carry: tuple[Array, Array, Array]):
            highest, total, out = carry
            begin = jnp.minimum(j * width, slots - width)  # the last tile may overlap
            place = begin + jnp.arange(width)
            cache, begin = hold_in_loop((keys, values), begin)
            key, value = (slice_layer(x, layer, begin, width, dtype) for x in cache)
            score = jnp.einsum("krh,skh->krs", query, key, preferred_element_type=jnp.float32)
            score = jnp.where((place <= row) & (place >= j * width), score, MASKED_SCORE)
            new = jnp.maximum(highest, score.max(-1))
            weight, decay = jnp.exp(score - new[..., None]), jnp.exp(highest - new)
            part = jnp.einsum("krs,skh->krh", weight, value, preferred_element_type=jnp.float32)
            return new, total * decay + weight.sum(-1), out * decay[..., None] + part

        zero = jnp.zeros(query.shape[:2])
        steps = jnp.minimum((first + QUERY_TILE - 1) // width + 1, -(-slots // width))
        initial = (zero + MASKED_SCORE, zero, jnp.zeros_like(query))
        _, total, out = jax.lax.fori_loop(0, steps, add_keys, initial)
        return out / total[..., None]

    out = jax.lax.map(attend_tile, (jnp.arange(tiles), q))
    out = out.reshape(tiles, key_heads, QUERY_TILE, group, size).transpose(0, 2, 1, 3, 4)
    return out.reshape(-1, heads, size)[:length].astype(dtype)
