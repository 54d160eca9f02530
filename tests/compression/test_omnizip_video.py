"""ISTC and DPC-KNN in corners that random clips do not reach."""

from functools import partial

import numpy as np
import pytest

from omnizip_jax.compression.counts import top_mask
from omnizip_jax.compression.omnizip_video import dpc_knn, istc, split_over_grids, squared_distances

RNG = np.random.default_rng(0)


def test_distances_survive_a_common_offset():
    grid = RNG.standard_normal((6, 8))
    as_fraction = ((grid[:, None] - grid[None]) ** 2).mean(-1)
    mask = np.ones(6, bool)
    np.testing.assert_allclose(squared_distances(np.float32(grid), mask), as_fraction, atol=1e-5)
    shifted = squared_distances(np.float32(grid + 1000), mask)
    np.testing.assert_allclose(shifted, as_fraction, atol=2e-3)  # what float32 leaves of the input


def test_repeated_tokens_rank_above_padding():
    grid = np.float32(RNG.standard_normal((8, 4)))
    grid[1:5] = grid[0]
    mask = np.arange(8) < 6
    score = dpc_knn(grid, mask, 3)
    for count in range(7):
        keep = np.asarray(top_mask(score, mask, count))
        assert keep.sum() == count and not np.any(keep & ~mask)


def test_relative_distances_do_not_depend_on_the_scale():
    """Large features hide an object of three tokens from the paper's score."""
    grid = 0.1 * np.float32(RNG.standard_normal((30, 16)))
    thing = [4, 5, 10]
    grid[thing] += np.float32(1 + 0.5 * RNG.standard_normal((3, 16)))
    mask = np.arange(30) < 28
    for scale in (0.1, 1, 100):
        score = np.asarray(dpc_knn(scale * grid, mask, 5, relative=True))
        assert set(thing) <= set(np.argsort(-score)[:6].tolist())
        assert np.all(np.isneginf(score[28:]))
    hidden = np.asarray(dpc_knn(100 * grid, mask, 5))
    assert not set(thing) & set(np.argsort(-hidden)[:6].tolist())


@pytest.mark.slow
def test_a_grid_of_equal_tokens_and_a_grid_of_one():
    same, mask = np.ones((6, 4), np.float32), np.ones(6, bool)
    spatial = partial(dpc_knn, knn=5)
    keep = istc(np.stack([same, same]), np.stack([mask, mask]), np.array([2, 3]), spatial)
    np.testing.assert_array_equal(np.sum(keep, -1), [2, 3])
    score = dpc_knn(same, mask, 5, relative=True)
    assert not np.any(np.isnan(score))
    one = istc(same[None, :1], np.ones((1, 1), bool), np.array([1]), spatial)
    assert one.tolist() == [[True]]


def test_odd_grids_keep_changed_tokens():
    first = np.float32(RNG.standard_normal((8, 16)))
    second = first.copy()
    second[[2, 5]] *= -1
    video, mask = np.stack([first, second]), np.ones((2, 8), bool)
    keep = istc(video, mask, np.array([4, 2]), partial(dpc_knn, knn=5))
    assert np.flatnonzero(keep[1]).tolist() == [2, 5]


def test_counts_of_grids():
    assert split_over_grids(np.int32(115), np.array([144, 144])).tolist() == [58, 57]
    assert split_over_grids(np.int32(5), np.array([0, 4, 4])).tolist() == [0, 3, 2]
    assert split_over_grids(np.int32(0), np.array([0, 0])).tolist() == [0, 0]
