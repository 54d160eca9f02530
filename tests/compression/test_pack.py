"""Packing is boolean indexing at a static shape."""

import jax
import numpy as np
import pytest

from omnizip_jax.compression.pack import pack


@pytest.mark.parametrize("capacity", [3, 7, 12, 20])
def test_kept_tokens_move_to_the_front_in_order(capacity):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((12, 4)).astype(np.float32)
    positions = rng.integers(1, 100, (3, 12))
    keep = np.isin(np.arange(12), [0, 2, 3, 7, 11])
    packed, places, count = jax.jit(pack, static_argnums=3)(embeddings, positions, keep, capacity)
    used = min(5, capacity)
    assert packed.shape == (capacity, 4) and places.shape == (3, capacity) and count == used
    np.testing.assert_array_equal(packed[:used], embeddings[keep][:used])
    np.testing.assert_array_equal(places[:, :used], positions[:, keep][:, :used])
    assert not np.any(packed[used:]) and not np.any(places[:, used:])
