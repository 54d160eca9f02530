"""The decoder of both families against transformers', float32."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omnizip_jax.models.decoder import Decoder, KVCache
from tests.models import hf
from tests.models.hf import to_flax

CONFIG = hf.TEXT_CONFIG
LENGTH, SLOTS = 40, 64


@pytest.fixture(scope="module")
def oracle():
    return hf.oracle(CONFIG)


@pytest.fixture(scope="module")
def block():
    return hf.random_block(LENGTH, CONFIG)


@pytest.fixture(scope="module")
def expected(oracle, block):
    embeddings, positions = block
    with torch.no_grad():
        return (
            oracle(
                inputs_embeds=torch.tensor(embeddings)[None],
                position_ids=torch.tensor(positions)[:, None].long(),
            )
            .last_hidden_state[0]
            .numpy()
        )


@pytest.fixture(scope="module")
def params(oracle):
    return {"params": to_flax(oracle.state_dict())}


def test_whole_sequence(params, block, expected):
    cache = KVCache.empty(CONFIG, SLOTS)
    hidden, cache = jax.jit(Decoder(CONFIG).apply, static_argnames="fresh")(
        params, *block, cache, fresh=True
    )
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    assert cache.length == LENGTH


@pytest.mark.parametrize("smallest", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_blocks_with_padding_equal_the_whole(params, block, expected, smallest, monkeypatch):
    """Blocks of 16 tokens, padding included; the next block overwrites the padding.

    Once with several attended lengths in the program, once with the whole cache only.
    """
    monkeypatch.setattr("omnizip_jax.models.attention.MIN_LENGTH_BUCKET", smallest)
    embeddings, positions = block
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def feed(embeddings, positions, cache, count):
        return Decoder(CONFIG).apply(params, embeddings, positions, cache, count)

    cache, start, out = KVCache.empty(CONFIG, SLOTS), 0, []
    for count in (16, 3, 1, 9, 11):
        part = slice(start, start + count)
        padded = np.full((16, CONFIG.hidden), 1e3, np.float32)
        padded[:count] = embeddings[part]
        padded_positions = np.zeros((3, 16), np.int32)
        padded_positions[:, :count] = positions[:, part]
        hidden, cache = feed(padded, padded_positions, cache, jnp.int32(count))
        out.append(hidden[:count])
        start += count
    assert cache.length == LENGTH
    np.testing.assert_allclose(np.concatenate(out), expected, atol=1e-5)


def test_long_sequences_attend_in_blocks(params, monkeypatch, block, expected):
    monkeypatch.setattr("omnizip_jax.models.attention.QUERY_BLOCK", 16)
    monkeypatch.setattr("omnizip_jax.models.attention.MAX_UNTILED", 16)
    monkeypatch.setattr("omnizip_jax.models.cpu_kernels.QUERY_TILE", 4)
    monkeypatch.setattr("omnizip_jax.models.cpu_kernels.KEY_TILE", 12)

    @jax.jit
    def both(params, embeddings, positions):
        cache = KVCache.empty(CONFIG, SLOTS)
        run = functools.partial(Decoder(CONFIG).apply, params, embeddings, positions, cache)
        return [run(fresh=fresh)[0] for fresh in (True, False)]

    for hidden in both(params, *block):
        np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_one_token_at_a_time(params, block, expected):
    embeddings, positions = block
    step = jax.jit(lambda *a: Decoder(CONFIG).apply(params, *a))
    cache = KVCache.empty(CONFIG, SLOTS)
    for i in range(5):
        hidden, cache = step(embeddings[i : i + 1], positions[:, i : i + 1], cache)
        np.testing.assert_allclose(hidden[0], expected[i], atol=1e-5)


def test_tied_logits_and_embeddings(params, oracle):
    tokens = jnp.array([3, 99])
    embedded = Decoder(CONFIG).apply(params, tokens, method="embed")
    np.testing.assert_array_equal(embedded, oracle.embed_tokens.weight.detach()[np.array(tokens)])
    logits = Decoder(CONFIG).apply(params, embedded, method="logits")
    table = oracle.embed_tokens.weight.detach().double().numpy()
    np.testing.assert_allclose(logits, table[np.array(tokens)] @ table.T, atol=1e-5)
    assert logits.dtype == jnp.float32


@pytest.mark.slow  # bfloat16 in tests/test_gpu_path.py
def test_runs_in_bfloat16(block):
    embeddings, positions = block
    decoder = Decoder(CONFIG, jnp.bfloat16)
    params = decoder.init(jax.random.key(0), jnp.zeros(2, jnp.int32), method="init_all")
    chex.assert_tree_all_finite(params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    cache = KVCache.empty(CONFIG, SLOTS, jnp.bfloat16)
    hidden, _ = decoder.apply(params, embeddings.astype(jnp.bfloat16), positions, cache)
    assert hidden.dtype == jnp.bfloat16 and bool(jnp.isfinite(hidden).all())


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=f"experts{config.experts}", marks=marks)
        for config, marks in zip(
            hf.TEXT_CONFIGS_3, [(), pytest.mark.slow, pytest.mark.slow], strict=True
        )
    ],
)
def test_experts_head_norms_and_deepstack(config):
    """A prompt with video in its middle, then a token after it, as Qwen3-Omni has them."""
    oracle = hf.oracle(config)
    params = {"params": jax.tree.map(jnp.asarray, to_flax(oracle.state_dict()))}
    params["params"]["lm_head"] = {"weight": jnp.zeros((config.vocabulary, config.hidden))}
    embeddings, positions = hf.random_block(LENGTH, config)
    rows = np.random.default_rng(1).standard_normal(
        (config.deepstack_layers, LENGTH, config.hidden), np.float32
    )
    video = np.arange(LENGTH) % 5 < 3
    video[-1] = False
    rows[:, ~video] = 0
    with torch.no_grad():
        expected = oracle(
            inputs_embeds=torch.tensor(embeddings)[None],
            position_ids=torch.tensor(positions)[:, None].float(),
            visual_pos_masks=torch.tensor(video)[None],
            deepstack_visual_embeds=list(torch.tensor(rows[:, video])),
        ).last_hidden_state[0]
    cache, last = KVCache.empty(config, SLOTS), LENGTH - 1
    apply = jax.jit(Decoder(config).apply, static_argnames="fresh")
    hidden, cache = apply(
        params,
        embeddings[:last],
        positions[:, :last],
        cache,
        fresh=True,
        deepstack=rows[:, :last],
    )
    np.testing.assert_allclose(hidden, expected[:last], atol=1e-5)
    hidden, _ = apply(params, embeddings[last:], positions[:, last:], cache)
    np.testing.assert_allclose(hidden, expected[last:], atol=1e-5)
