"""Section 3.4: interleaved spatio-temporal compression (ISTC) of one window's video."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import proportion, salience_order
from omnizip_jax.compression.similarity import cosine, products


def squared_distances(grid: Float[Array, "P D"], mask: Bool[Array, " P"]) -> Float[Array, "P P"]:
    """Euclidean distances between the tokens of a grid, squared, divided by D.

    Dividing by D is common in DPC-KNN for tokens; without it the density term of eq. 7 would
    outweigh everything else at the widths of a language model.
    """
    grid = grid.astype(jnp.promote_types(grid.dtype, jnp.float32))
    # Distances do not depend on the mean; without it the difference below loses fewer digits.
    total = jnp.dot(mask.astype(grid.dtype), grid, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.maximum(jnp.sum(mask), 1)
    centred = grid - mean
    gram = products(centred, centred)
    square = jnp.diagonal(gram)
    apart = jnp.maximum(square[:, None] + square[None, :] - 2 * gram, 0) / grid.shape[-1]
    return jnp.where(jnp.eye(mask.size, dtype=bool), 0, apart)


def density_peaks(
    distances: Float[Array, "P P"],
    dissimilarities: Float[Array, "P P"],
    mask: Bool[Array, " P"],
    knn: int,
) -> Float[Array, " P"]:
    """Logarithm of the DPC-KNN score: log delta - mean dissimilarity of the nearest neighbours.

    The score itself, delta times rho with ``rho = exp(-mean)`` (eq. 7-8), underflows at the
    feature norms of large models; its logarithm ranks the same. The k = min(knn, tokens - 1)
    nearest neighbours exclude the token itself. Delta is the distance to the nearest denser
    token, or, where no token is strictly denser, to the farthest one.

    Args:
        distances: between all tokens, 0 on the diagonal.
        dissimilarities: averaged by the density; the squared distances in eq. 7.
        mask: tokens that exist.
        knn: neighbours.
    """
    tokens = mask.size
    neighbour = mask & ~jnp.eye(tokens, dtype=bool)
    slots = min(knn, tokens)
    nearest, _ = jax.lax.top_k(jnp.where(neighbour, -dissimilarities, -jnp.inf), slots)
    used = jnp.arange(slots) < jnp.sum(mask) - 1
    log_density = jnp.sum(jnp.where(used, nearest, 0), -1) / jnp.maximum(jnp.sum(used), 1)

    denser = mask & (log_density[None, :] > log_density[:, None])
    to_denser = jnp.min(jnp.where(denser, distances, jnp.inf), axis=-1)
    to_farthest = jnp.max(jnp.where(mask, distances, 0), axis=-1)
    delta = jnp.where(denser.any(-1), to_denser, to_farthest)
    return jnp.where(mask, jnp.log(delta) + log_density, -jnp.inf)


def dpc_knn(
    grid: Float[Array, "P D"], mask: Bool[Array, " P"], knn: int, relative: bool = False
) -> Float[Array, " P"]:
    """DPC-KNN score of the tokens of a grid (eq. 7-8) in log space, Euclidean distance / sqrt(D).

    The density of eq. 7 depends on the scale of the features: where they are large, it outweighs
    delta, and small objects that differ from their surroundings score lowest. ``relative`` divides
    the distances by the largest in the grid, which bounds the density and removes the scale.
    """
    squares = squared_distances(grid, mask)
    if relative:
        largest = jnp.max(jnp.where(mask[:, None] & mask, squares, 0))
        squares = squares / jnp.where(largest > 0, largest, 1)
    return density_peaks(jnp.sqrt(squares), squares, mask, knn)


def novelty(
    grid: Float[Array, "P D"], previous: Float[Array, "P D"], previous_mask: Bool[Array, " P"]
) -> Float[Array, " P"]:
    """Minus the cosine with the same position of the previous grid (eq. 6); higher is newer."""
    return jnp.where(previous_mask, -cosine(grid, previous), 1)


def change(video: Float[Array, "W G P D"], mask: Bool[Array, "W G P"]) -> Float[Array, "W G P"]:
    """1 - cosine with the same position of the previous existing grid; 3 without one."""
    flat, exists = video.reshape(-1, *video.shape[2:]), mask.reshape(-1, mask.shape[-1])
    other = previous(exists.any(-1))
    compared = (other >= 0)[:, None] & exists[other]
    return frame_distance(flat, other, compared).reshape(mask.shape)


def frame_distance(
    frames: Float[Array, "T P D"], other: Int[Array, " T"], compared: Bool[Array, "T P"]
) -> Float[Array, "T P"]:
    """1 - cosine with the same position of another frame; 3 where it is not compared."""

    def one(frames, i):  # a frame at a time: no copy of the clip
        return jnp.where(compared[i], 1 - cosine(frames[i], frames[other[i]]), 3)

    return over_indices(one, len(frames), frames)


def over_windows(function, *arrays):
    """``lax.map`` over windows without a copy of the clip."""

    def one(*clip_and_index):
        *clip, i = clip_and_index
        return function(*(x[i] for x in clip))

    return over_indices(one, len(arrays[0]), *arrays)


def over_indices(function, count: int, *arrays):
    """``function(*arrays, i)`` for ``i`` below ``count``, with whole arrays that are not copied."""

    def one_by_one(*arrays: Array):
        return jax.lax.map(lambda i: function(*_held(arrays, i)), jnp.arange(count))

    def in_batches(*arrays: Array):
        return jax.lax.map(lambda i: function(*arrays, i), jnp.arange(count), batch_size=16)

    # One window is enough work for a CPU; on an accelerator its kernels would be too small.
    return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=in_batches)


def scan_windows(function, carry, *arrays):
    """``carry = function(carry, *window)`` over the windows, without a copy of the clip."""

    def step(carry, i):
        *clip, i = _held(arrays, i)
        return function(carry, *(x[i] for x in clip)), None

    return jax.lax.scan(step, carry, jnp.arange(len(arrays[0])))[0]


def _held(arrays, i):
    """The arrays and an index; XLA on a CPU would convert a bfloat16 clip before the loop."""
    return jax.lax.optimization_barrier((*arrays, i))


def previous(exists: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Index of the last entry before each one that exists; -1 where there is none."""
    index = jnp.where(exists, jnp.arange(exists.size), -1)
    return jnp.concatenate([jnp.array([-1]), jax.lax.cummax(index)[:-1]])


def place_in_run(exists: Bool[Array, " n"], run: Int[Array, " n"]) -> Int[Array, " n"]:
    """Index of every entry among the existing ones of its run; runs are adjacent entries."""
    count = jnp.cumsum(exists) - exists
    first = jax.ops.segment_min(jnp.where(exists, count, exists.size), run, exists.size)
    return count - first[run]


def split_over_grids(kept: Int[Array, ""], counts: Int[Array, " G"]) -> Int[Array, " G"]:
    """Divide a window's kept tokens over its grids in proportion; cumulative counts round up."""
    cumulative = jnp.cumsum(counts)
    down, rest = proportion(cumulative, kept, jnp.maximum(cumulative[-1], 1))
    return jnp.diff(down + (rest > 0), prepend=0)


def istc(
    video: Float[Array, "G P D"],
    mask: Bool[Array, "G P"],
    kept: Int[Array, " G"],
    spatial: Callable[[Float[Array, "P D"], Bool[Array, " P"]], Float[Array, " P"]],
) -> Bool[Array, "G P"]:
    """Interleaved spatio-temporal compression: the mask of the kept video tokens of a window.

    Grids 0, 2, ... keep the tokens with the highest ``spatial`` score, grids 1, 3, ... those that
    differ most from the previous grid before pruning (eq. 6). Nothing is merged.

    Args:
        video: G grids (two frames each) of P tokens.
        mask: tokens that exist.
        kept: tokens to keep in each grid.
        spatial: score of the tokens of one grid, ``dpc_knn`` with its neighbours bound.
    """
    scores = [
        novelty(video[g], video[g - 1], mask[g - 1]) if g % 2 else spatial(video[g], mask[g])
        for g in range(video.shape[0])
    ]
    order = jax.vmap(salience_order)(jnp.stack(scores), mask)
    return (order < kept[:, None]) & mask
