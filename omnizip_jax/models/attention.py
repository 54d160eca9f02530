"""The only place that calls an attention implementation and builds masks.

Where ``fused`` is True, half precision runs in cuDNN's kernel; all else is XLA's. XLA materialises
the scores, so long sequences go through it in blocks of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

QUERY_BLOCK = 512  # queries whose scores XLA may hold at once
DIRECT = 1024  # longest sequence whose causal attention is computed in one piece
QUERY_TILE, KEY_TILE = 128, 512  # beyond it; the one divides the other
LEAST = -1e30  # a score that counts for nothing, yet is finite
SMALLEST_ATTENDED = 256  # below this many keys a branch costs more than it saves


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    mask: Bool[Array, "#N #T S"] | None = None,
    fused: bool = False,
) -> Float[Array, "T N H"]:
    """Softmax attention, scaled by 1/sqrt(H), softmax in float32; K key heads divide N.

    ``mask`` is True where a query may attend. A query that may attend to nothing returns a
    finite average.
    """
    heads, queries, keys = q.shape[1], q.shape[0], k.shape[0]
    if fused and _fits_cudnn(q):
        if mask is None:
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        mask = jnp.broadcast_to(mask, (mask.shape[0], queries, keys))  # it wants the query axis
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
    """cuDNN's kernel; JAX's own rule for ``vmap`` asks for a mask of every head."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


@_attend_cudnn.def_vmap
def _attend_cudnn_batched(axis_size: int, batched: list[bool], *arguments: Array):
    """Several batches are one larger batch."""
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
    """Attention of a sequence to itself, each query to the keys up to its own place."""
    if fused and _fits_cudnn(q):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    length = q.shape[0]
    if length <= DIRECT:
        return attend(q, k, v, block_mask(length, jnp.int32(0), length))
    return _attend_tiles(q, k, v)


def _attend_tiles(
    q: Float[Array, "T N H"], k: Float[Array, "T K H"], v: Float[Array, "T K H"]
) -> Float[Array, "T N H"]:
    """Causal attention in tiles that fit a processor's cache (FlashAttention's recurrence).

    A tile of queries passes over the tiles of keys up to its own place, with a running maximum and
    sum of the softmax; scores never exist outside a tile. Forward only: the number of steps is
    data to XLA.
    """
    length, heads, size = q.shape
    key_heads = k.shape[1]
    padding = -length % KEY_TILE
    q, k, v = (jnp.pad(x, ((0, padding), (0, 0), (0, 0))) for x in (q, k, v))
    tiles = (length + padding) // QUERY_TILE
    group = heads // key_heads
    # One product per key head: the queries that share it are its rows.
    q = (q.astype(jnp.float32) * size**-0.5).reshape(tiles, QUERY_TILE, key_heads, group, size)
    q = q.transpose(0, 2, 1, 3, 4).reshape(tiles, key_heads, QUERY_TILE * group, size)

    def of_tile(tile: tuple[Array, Array]) -> Array:
        index, query = tile
        row = index * QUERY_TILE + jnp.repeat(jnp.arange(QUERY_TILE), group)[:, None]

        def add_keys(j: Array, carry: tuple[Array, Array, Array]):
            highest, total, out = carry
            key, value = (jax.lax.dynamic_slice_in_dim(x, j * KEY_TILE, KEY_TILE) for x in (k, v))
            score = jnp.einsum("krh,skh->krs", query, key, preferred_element_type=jnp.float32)
            score = jnp.where(j * KEY_TILE + jnp.arange(KEY_TILE) <= row, score, LEAST)
            new = jnp.maximum(highest, score.max(-1))
            weight, faded = jnp.exp(score - new[..., None]), jnp.exp(highest - new)
            part = jnp.einsum("krs,skh->krh", weight, value, preferred_element_type=jnp.float32)
            return new, total * faded + weight.sum(-1), out * faded[..., None] + part

        blank = jnp.zeros(query.shape[:2])
        steps = (index * QUERY_TILE) // KEY_TILE + 1
        begin = (blank + LEAST, blank, jnp.zeros_like(query))
        _, total, out = jax.lax.fori_loop(0, steps, add_keys, begin)
        return out / total[..., None]

    out = jax.lax.map(of_tile, (jnp.arange(tiles), q))
    out = out.reshape(tiles, key_heads, QUERY_TILE, group, size).transpose(0, 2, 1, 3, 4)
    return out.reshape(-1, heads, size)[:length].astype(v.dtype)


def attend_cached(
    q: Float[Array, "T N H"],
    keys: Float[Array, "L S K H"],
    values: Float[Array, "L S K H"],
    layer: Int[Array, ""] | int,
    start: Int[Array, ""],
    fused: bool = False,
) -> Float[Array, "T N H"]:
    """Attention of a block of queries, written to the cache at ``start``, to the cache up to them.

    Attending to a mostly empty cache would cost as much as to a full one, so the attended length
    is the smallest of a few static ones that holds the block; one program has them all.

    Every layer chooses for itself. One choice around the loop over layers makes XLA copy the whole
    cache into its branch: decoding took 1.8 times as long with 8192 slots on a CPU.
    """
    queries = q.shape[0]

    def attend_to(length: int) -> Array:
        k, v = (_slots(x, layer, length) for x in (keys, values))
        mask = block_mask(queries, start, length)
        return _attend_one(q, k, v, mask) if queries == 1 else attend(q, k, v, mask, fused)

    return _attend_as_far(attend_to, start + queries, keys.shape[1])


def attend_lanes(
    q: Float[Array, "B N H"],
    caches: Sequence[tuple[Float[Array, "L S K H"], Float[Array, "L S K H"]]],
    layer: Int[Array, ""] | int,
    starts: Int[Array, " B"],
) -> Float[Array, "B N H"]:
    """Attention of one query to each of B caches, written to them at ``starts``.

    As ``attend_cached``; the lane that is filled furthest chooses the length for all.
    """

    def attend_to(length: int) -> Array:
        rows = []
        for row, (keys, values), start in zip(q[:, None], caches, starts, strict=True):
            k, v = (_slots(x, layer, length) for x in (keys, values))
            rows.append(_attend_one(row, k, v, block_mask(1, start, length)))
        return jnp.concatenate(rows)

    return _attend_as_far(attend_to, jnp.max(starts) + 1, caches[0][0].shape[1])


def _slots(x: Float[Array, "L S K H"], layer: Int[Array, ""] | int, count: int) -> Array:
    """The first slots of one layer."""
    return jax.lax.dynamic_slice(x, (layer, 0, 0, 0), (1, count, *x.shape[2:]))[0]


def _attend_as_far(
    attend_to: Callable[[int], Array], needed: Int[Array, ""], slots: int
) -> Float[Array, "T N H"]:
    """Attention to the first of the static lengths that is enough."""
    lengths = attended_lengths(slots)
    if len(lengths) == 1:
        return attend_to(slots)
    choice = jnp.sum(needed > jnp.array(lengths[:-1]))
    return jax.lax.switch(choice, [lambda n=n: attend_to(n) for n in lengths])


def _attend_one(
    q: Float[Array, "1 N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    mask: Bool[Array, "1 1 S"],
) -> Float[Array, "1 N H"]:
    """Attention of one query, every head to the keys of all K heads in one product.

    The queries stand in a matrix [N, K H] that is zero outside their own key head, so that keys and
    values are read as the matrices [S, K H] that they are, where a product a key head would copy
    them first. It computes K times more, which reading the cache hides.
    """
    _, heads, size = q.shape
    slots, key_heads = k.shape[:2]
    group = heads // key_heads
    own = jnp.eye(key_heads, dtype=q.dtype)[:, None, :, None]
    q = (q.reshape(key_heads, group, 1, size) * own).reshape(heads, -1)
    k, v = k.reshape(slots, -1), v.reshape(slots, -1)
    score = jnp.einsum("nd,sd->ns", q, k, preferred_element_type=jnp.float32) * size**-0.5
    weight = jax.nn.softmax(jnp.where(mask[0], score, LEAST)).astype(v.dtype)
    out = (weight @ v).reshape(key_heads, group, key_heads, size)
    return jnp.einsum("kgkh->kgh", out).reshape(1, heads, size)


def weights_of_last(
    q: Float[Array, "1 N H"], k: Float[Array, "S K H"], last: Int[Array, ""]
) -> Float[Array, "N S"]:
    """Softmax over the keys up to ``last``, of the one query that stands there; float32."""
    heads, size = q.shape[1:]
    q = q.reshape(k.shape[1], -1, size)
    score = jnp.einsum("kgh,skh->kgs", q, k, preferred_element_type=jnp.float32) * size**-0.5
    score = jnp.where(jnp.arange(k.shape[0]) <= last, score, LEAST)
    return jax.nn.softmax(score).reshape(heads, -1)


def attended_lengths(slots: int) -> list[int]:
    """Eighth, quarter, half and whole of a cache, as far as they are worth a branch."""
    parts = {-(-slots // parts) for parts in (8, 4, 2)}
    return [*sorted(n for n in parts if n >= SMALLEST_ATTENDED), slots]


def block_mask(queries: int, start: Int[Array, ""], keys: int) -> Bool[Array, "1 T S"]:
    """Causal mask of a block of queries that was written to a cache at ``start``."""
    return (jnp.arange(keys) <= start + jnp.arange(queries)[:, None])[None]


def _fits_cudnn(q: Array) -> bool:
    # One query is bound by reading the cache: XLA does that well, and without a full mask.
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[0] > 1 and q.shape[2] % 8 == 0
