"""Kernels written for XLA on a CPU; each names the figure that justifies it (docs/performance.md).

They are correct on every device. ``backend.py`` and ``attention.py`` choose between them and the
plain operations.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

MASKED_SCORE = -1e30  # finite, so that a row of masked scores has a finite softmax
WEIGHT_TILE_BYTES = 2**17  # row serve.batch: 2.7 ms a token; 3.0 with 2**16, 3.5 with 2**18
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

    XLA on a CPU copies a layer's matrix out of the stack before a product with several rows, to
    memory and back. Row serve.batch: 2.3 times one sequence after another; 2.7 instead of 4.0 ms of
    processor time a token.
    """

    stack: Float[Array, "L O I"]
    index: Int[Array, ""]

    def apply(self, x: Float[Array, "T I"]) -> Float[Array, "T O"]:
        """``x @ matrix.T`` in tiles of rows that stay in a core's cache between copy and use."""
        _, outputs, inputs = self.stack.shape
        rows = min(max(WEIGHT_TILE_BYTES // (inputs * self.stack.dtype.itemsize), 1), outputs)

        def add(tile: Array, out: Array) -> Array:
            start = jnp.minimum(tile * rows, outputs - rows)  # the last one may overlap
            stack, start = hold_in_loop(self.stack, start)
            matrix = jax.lax.dynamic_slice(stack, (self.index, start, 0), (1, rows, inputs))[0]
            return jax.lax.dynamic_update_slice(out, x @ matrix.T, (0, start))

        out = jnp.zeros((x.shape[0], outputs), x.dtype)
        return jax.lax.fori_loop(0, -(-outputs // rows), add, out)


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


def attend_tiled(
    q: Float[Array, "T N H"],
    keys: Float[Array, "L S K H"],
    values: Float[Array, "L S K H"],
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
            key, value = (
                jax.lax.dynamic_slice(x, (layer, begin, 0, 0), (1, width, *x.shape[2:]))[0]
                for x in cache
            )
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
    return out.reshape(-1, heads, size)[:length].astype(values.dtype)
