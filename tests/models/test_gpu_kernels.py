"""The GPU's attention to a cache, interpreted on a CPU, against attention with a mask."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.models.attention import attend, attend_cached_batch, causal_mask
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.gpu_kernels import attend_to_layer
from omnizip_jax.models.quantized import quantize_vectors

HEADS, KEY_HEADS, SIZE, SLOTS = 6, 2, 16, 150  # not a multiple of the tile of keys


@pytest.fixture
def cache(interpreted_kernels):
    """Keys and values of two layers."""
    values = np.random.default_rng(0).standard_normal((2, 2, SLOTS, KEY_HEADS, SIZE), np.float32)
    values[:, :, 140:] = np.nan  # beyond every sequence
    return jnp.asarray(values)


@pytest.mark.parametrize(
    ("queries", "start"), [(1, 0), (1, 31), (1, 139), (7, 90), (100, 0), (100, 40)]
)
def test_attention_to_a_layer(cache, queries, start):
    """One part of the keys and several; parts without keys; tiles that are not full."""
    q = np.random.default_rng(1).standard_normal((queries, HEADS, SIZE), np.float32)
    given = attend_to_layer(jnp.asarray(q), *cache, 1, jnp.int32(start))
    keys, values = cache[:, 1, :140]
    expected = attend(q, keys, values, causal_mask(queries, jnp.int32(start), 140))
    np.testing.assert_allclose(given, expected, atol=2e-6)


def test_a_batch_attends_to_its_own_caches(cache):
    q = np.random.default_rng(1).standard_normal((2, HEADS, SIZE), np.float32)
    caches = [tuple(cache), tuple(cache + 1)]
    starts = jnp.array([5, 70])
    given = attend_cached_batch(jnp.asarray(q), caches, 0, starts, backend=Backend.GPU)
    for row in range(2):
        alone = attend_to_layer(jnp.asarray(q[row : row + 1]), *caches[row], 0, starts[row])
        np.testing.assert_array_equal(given[row], alone[0])


@pytest.mark.parametrize(("queries", "start"), [(1, 139), (7, 90)])
def test_attention_to_a_quantised_cache(cache, queries, start):
    q = jnp.asarray(np.random.default_rng(1).standard_normal((queries, HEADS, SIZE), np.float32))
    keys, values = (quantize_vectors(jnp.nan_to_num(part)) for part in cache)
    given = attend_to_layer(q, keys, values, 1, jnp.int32(start))
    expected = attend_to_layer(q, keys.dequantize(), values.dequantize(), 1, jnp.int32(start))
    np.testing.assert_allclose(given, expected, atol=5e-6)
