"""Keys and values in 8 bits: contexts, streams, batches, eviction, snapshots and pruned prefill."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import WindowSpec, ask, feed, fork, generate, init_stream, read, restore, save
from omnizip_jax.compression import FastV
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import begin, run, step_batch
from omnizip_jax.inference.kv_cache_capacity import evict
from omnizip_jax.models.attention import attend_cached
from omnizip_jax.models.quantized import quantize_vectors
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)
QUESTION = "What happens?"


@pytest.fixture
def quantized(params):
    """The tiny model with caches in 8 bits."""
    return params.replace(quantized_cache=True)


def assert_close(context, plain):
    """Keys and values differ from those of a plain context by less than 2 % (root mean square)."""
    for name in ("keys", "values"):
        wanted = np.asarray(getattr(plain.cache, name))
        error = np.asarray(getattr(context.cache, name).dequantize()) - wanted
        assert np.sqrt(np.mean(error**2) / np.mean(wanted**2)) < 0.02


def test_vectors_keep_their_direction():
    x = np.random.default_rng(0).standard_normal((5, 2, 16)).astype(np.float32)
    x[3] = 0
    quantized = quantize_vectors(jnp.asarray(x))
    assert quantized.values.dtype == jnp.int8 and quantized.scales.shape == (5, 2, 1)
    step = np.abs(x).max(-1, keepdims=True) / 127
    assert (np.abs(quantized.dequantize() - x) <= step * 0.51).all()
    again = quantize_vectors(quantized.dequantize())
    np.testing.assert_array_equal(again.values, quantized.values)


@pytest.mark.parametrize("queries", [1, 3, 256])
def test_attention_equals_that_to_the_dequantised_cache(queries):
    rng = np.random.default_rng(0)
    keys, values = (
        quantize_vectors(jnp.asarray(rng.standard_normal((2, 300, 2, 16)), jnp.float32))
        for _ in range(2)
    )
    q = jnp.asarray(rng.standard_normal((queries, 4, 16)), jnp.float32)
    start = jnp.int32(20)
    plain = attend_cached(q, keys.dequantize(), values.dequantize(), 1, start)
    np.testing.assert_allclose(attend_cached(q, keys, values, 1, start), plain, atol=1e-5)


@pytest.mark.slow
def test_streams_and_their_snapshots(params, quantized, random_windows, tmp_path):
    clip = random_windows([2, 2, 1, 2], [200, 200, 77, 200])
    windows = [jax.tree.map(lambda x, i=i: x[i], clip) for i in range(4)]
    states = []
    for model in (quantized, params):
        state = init_stream(model, capacity=768, text_slots=192, spec=SPEC)
        for window in windows:
            state = feed(model, state, window)
        states.append(state)
    state, plain = states
    assert_close(state, plain)
    length = state.cache.length.copy()
    assert state.cache.keys.values.nbytes * 4 == plain.cache.keys.nbytes
    answer, _ = ask(quantized, fork(state), QUESTION, max_new_tokens=5)
    save(state, tmp_path / "stream")
    back = restore(params, tmp_path / "stream")
    jax.tree.map(np.testing.assert_array_equal, back.cache, state.cache)
    assert ask(quantized, back, QUESTION, max_new_tokens=5)[0].token_ids == answer.token_ids
    low = [x.replace(retention=dataclasses.replace(x.retention, low_water=200)) for x in states]
    evicted, plain = map(evict, low)
    assert int(evicted.cache.length) == int(plain.cache.length) < int(length)
    assert_close(evicted, plain)


@pytest.mark.slow
def test_batches_decode_as_alone(quantized, random_windows):
    context = read(quantized, clip_of(random_windows([2, 1], [200, 77]), SPEC))
    sampling = [SamplingParams(7), SamplingParams(5, temperature=1.0, seed=3)]
    alone = [run(quantized, begin(quantized, context, QUESTION, each)).ids for each in sampling]
    states = [begin(quantized, context, QUESTION, each) for each in sampling]
    while not all(state.finished for state in states):
        states = step_batch(quantized, states)
    assert [state.ids for state in states] == alone


@pytest.mark.slow
def test_pruning_in_the_decoder(quantized, random_windows):
    clip = clip_of(random_windows([2, 1], [200, 77]), SPEC)
    answer = generate(quantized, clip, QUESTION, compression=FastV(), max_new_tokens=5)
    assert answer.token_ids
