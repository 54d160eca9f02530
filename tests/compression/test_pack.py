"""Packing is boolean indexing at a static shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.compression.decoder_stages import front, unpacked


@pytest.mark.parametrize("capacity", [5, 7, 12, 20])
@pytest.mark.parametrize("kept", [[0, 2, 3, 7, 11], [4, 9], []], ids=len)
def test_kept_tokens_move_to_the_front_in_order(kept, capacity):
    keep = jnp.array(np.isin(np.arange(12), kept))
    index, used = jax.jit(front, static_argnums=1)(keep, capacity)
    assert index.shape == used.shape == (capacity,)
    np.testing.assert_array_equal(used, np.arange(capacity) < len(kept))
    np.testing.assert_array_equal(np.asarray(index)[: len(kept)], kept)
    assert not np.any(np.asarray(index)[len(kept) :])  # any token will do, and this one is there
    values = jnp.arange(1.0, capacity + 1)
    back = np.zeros(12)
    back[kept[:capacity]] = 1 + np.arange(min(len(kept), capacity))
    np.testing.assert_array_equal(unpacked(values, keep), back)
