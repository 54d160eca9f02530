"""The audio encoder against transformers' Qwen2_5OmniAudioEncoder, float32."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import AudioConfig
from tests.models import hf
from tests.models.hf import to_flax

CONFIG = AudioConfig(mel_bins=8, layers=3, hidden=32, heads=4, ffn=48, n_window=20, output=24)
FRAMES = 2 * CONFIG.n_window


@pytest.fixture(scope="module")
def oracle():
    return hf.oracle(CONFIG)


@pytest.fixture(scope="module")
def encode(oracle):
    """Encode stacked windows; fails if any test causes a second trace."""
    params = {"params": to_flax(oracle.state_dict())}
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one(mel, mel_length):
        return AudioEncoder(CONFIG).apply(params, mel, mel_length)

    def all_windows(mel, lengths):
        windows = [one(m, jnp.int32(n)) for m, n in zip(mel, lengths, strict=True)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *windows)

    return all_windows


def clip(length, seed=0):
    return np.random.default_rng(seed).normal(size=(CONFIG.mel_bins, length)).astype(np.float32)


# Full windows; tails of 1 to 39 mel frames, with and without an odd last frame, alone or after
# full windows. One mel frame makes no token.
@pytest.mark.parametrize("length", [40, 120, 2, 3, 4, 5, 6, 7, 38, 39, 41, 42, 59, 61, 102])
def test_equals_transformers(oracle, encode, length):
    mel = clip(length, seed=length)
    ours = encode(*hf.audio_windows(mel, FRAMES))
    tokens, queries, keys = hf.run_audio(oracle, CONFIG, mel)
    assert len(tokens) == ((length - 1) // 2 + 1) // 2
    np.testing.assert_allclose(ours.tokens[ours.token_mask], tokens, atol=1e-5)
    np.testing.assert_allclose(ours.queries[ours.frame_mask], queries, atol=1e-5)
    np.testing.assert_allclose(ours.keys[ours.frame_mask], keys, atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 2, 13, 39, 40])
def test_padding_has_no_effect(encode, length):
    mel, noise = clip(FRAMES), clip(FRAMES, seed=1)
    mel[:, length:] = 0
    noise[:, :length] = mel[:, :length]
    with_zeros, with_noise = encode([mel], [length]), encode([noise], [length])
    assert with_zeros.frame_mask.sum() == (length + 1) // 2
    assert with_zeros.token_mask.sum() == (length + 1) // 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(with_noise))
    np.testing.assert_array_equal(with_zeros.tokens, with_noise.tokens)
    np.testing.assert_array_equal(with_zeros.keys, with_noise.keys)


@pytest.mark.slow  # tests/test_gpu_path.py compares both over windows
def test_vmap_and_map_equal_single_windows(oracle, encode):
    mel, lengths = hf.audio_windows(clip(107), FRAMES)
    params = {"params": to_flax(oracle.state_dict())}

    def one(window):
        return AudioEncoder(CONFIG).apply(params, *window)

    batch = (jnp.asarray(mel), jnp.asarray(lengths))
    expected = encode(mel, lengths)
    for batched in (jax.jit(jax.vmap(one))(batch), jax.jit(lambda b: jax.lax.map(one, b))(batch)):
        chex.assert_trees_all_close(batched, expected, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16(oracle, encode):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), to_flax(oracle.state_dict()))
    mel, lengths = hf.audio_windows(clip(33), FRAMES)
    encoder = AudioEncoder(CONFIG, dtype=jnp.bfloat16)
    out = jax.jit(encoder.apply)({"params": params}, mel[0], lengths[0])
    assert out.tokens.dtype == out.queries.dtype == out.keys.dtype == jnp.bfloat16
    expected = encode(mel, lengths).tokens[0]
    error = np.abs(np.asarray(out.tokens, np.float32) - expected)[out.token_mask]
    assert error.max() < 0.05 * np.abs(expected).max()


# Sizes and counts of the released encoders, which also contain two unused embeddings.
@pytest.mark.parametrize(("output", "released"), [(2048, 637_676_544), (3584, 639_647_232)])
def test_parameter_count_as_released(output, released):
    config = AudioConfig(
        mel_bins=128, layers=32, hidden=1280, heads=20, ffn=5120, n_window=100, output=output
    )
    params = jax.eval_shape(
        AudioEncoder(config).init, jax.random.key(0), jnp.zeros((128, 200)), jnp.int32(200)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 2 * output == released


@pytest.mark.parametrize("shape", [(8, 20), (4, 40), (2, 8, 40)])
def test_wrong_shape_is_refused(oracle, shape, unchecked):
    with pytest.raises(ValueError, match="mel spectrogram of one window"):
        AudioEncoder(CONFIG).apply({"params": to_flax(oracle.state_dict())}, jnp.zeros(shape), 40)
