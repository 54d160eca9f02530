"""All implementations in ``attention`` against softmax attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.models import attention

LAYERS, SLOTS, HEADS, KEY_HEADS, SIZE = 2, 2048, 6, 2, 16


def oracle(q, k, v, start):
    """Causal attention of consecutive queries from ``start``, head by head."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.empty(q.shape)
    for head in range(q.shape[1]):
        own = head // (q.shape[1] // k.shape[1])
        for row in range(len(q)):
            past = slice(start + row + 1)
            score = np.exp(k[past, own] @ q[row, head] / np.sqrt(q.shape[2]))
            out[row, head] = score @ v[past, own] / score.sum()
    return out


attend_cached = jax.jit(attention.attend_cached)


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("start", [0, 255, 256, 700, 1500, 2041])
def test_a_block_against_the_cache(queries, start):
    cache = random(2, LAYERS, SLOTS, KEY_HEADS, SIZE)
    q = random(queries, HEADS, SIZE)
    out = attend_cached(q, *cache, jnp.int32(1), jnp.int32(start))
    np.testing.assert_allclose(out, oracle(q, *cache[:, 1], start), atol=1e-5)


@pytest.mark.parametrize("length", [1, 40, attention.MAX_UNTILED, attention.MAX_UNTILED + 130])
def test_a_sequence_against_itself(length):
    q, (k, v) = random(length, HEADS, SIZE), random(2, length, KEY_HEADS, SIZE)
    out = jax.jit(attention.attend_causal)(q, k, v)
    np.testing.assert_allclose(out, oracle(q, k, v, 0), atol=1e-5)
