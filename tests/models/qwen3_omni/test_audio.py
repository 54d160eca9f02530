"""The audio encoder against transformers' Qwen3OmniMoeAudioEncoder, float32."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.models.qwen3_omni.audio import AudioEncoder, audio_tokens
from omnizip_jax.models.qwen3_omni.config import AudioConfig
from tests.models import hf
from tests.models.hf import to_flax

FRAMES = 200
# They differ in heads, channels, bins and the length of an attention block.
CONFIGS = [
    AudioConfig(
        mel_bins=bins,
        layers=2,
        hidden=32,
        heads=heads,
        ffn=48,
        output=24,
        n_window=50,
        block=block,
        channels=channels,
    )
    for bins, heads, channels, block in ((8, 4, 6, 800), (20, 2, 3, 400), (16, 8, 4, 200))
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(CONFIGS[0], id="8s"),
        pytest.param(CONFIGS[1], id="4s", marks=pytest.mark.slow),
        pytest.param(CONFIGS[2], id="2s", marks=pytest.mark.slow),
    ],
)
def config(request):
    return request.param


@pytest.fixture(scope="module")
def oracle(config):
    return hf.oracle(config)


@pytest.fixture(scope="module")
def encode(config, oracle):
    """Encode the windows of a clip; fails if any test causes a second trace."""
    params, size = {"params": to_flax(oracle.state_dict())}, config.block // FRAMES
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def block(mel, mel_length):
        return AudioEncoder(config).apply(params, mel, mel_length)

    def all_windows(mel, lengths):
        padding = -len(mel) % size
        mel = np.pad(mel, ((0, padding), (0, 0), (0, 0))).reshape(-1, size, *mel.shape[1:])
        lengths = np.pad(lengths, (0, padding)).reshape(-1, size)
        blocks = [block(m, jnp.asarray(n)) for m, n in zip(mel, lengths, strict=True)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)

    return all_windows


def clip(config, length, seed=0):
    return np.random.default_rng(seed).normal(size=(config.mel_bins, length)).astype(np.float32)


# Whole blocks and several; tails of whole seconds, of full and begun tokens; a tail under 1 s.
@pytest.mark.parametrize("length", [200, 800, 1000, 100, 101, 108, 109, 177, 830, 1677])
def test_equals_transformers(oracle, config, encode, length):
    mel = clip(config, length, seed=length)
    ours = encode(*hf.audio_windows(mel, FRAMES))
    expected = hf.run_audio(oracle, config, mel)
    assert len(expected[0]) == audio_tokens(np.array(length)) == ours.token_mask.sum()
    for own, theirs in zip((ours.tokens, ours.queries, ours.keys), expected, strict=True):
        np.testing.assert_allclose(own[ours.token_mask], theirs, atol=1e-5)


def test_a_clip_under_1_s_is_padded_as_beside_a_longer_one(oracle, config, encode):
    """transformers pads chunks to the longest of the batch, so a short clip alone differs."""
    short, longer = clip(config, 77), clip(config, 300, seed=1)
    ours = encode(*hf.audio_windows(short, FRAMES))
    expected = hf.run_audio(oracle, config, short, longer)[0][:10]
    np.testing.assert_allclose(ours.tokens[ours.token_mask], expected, atol=1e-5)
    assert len(hf.run_audio(oracle, config, short)[0]) == 10


@pytest.mark.parametrize("length", [0, 1, 13, 100, 139, 200])
def test_padding_has_no_effect(config, encode, length):
    mel, noise = clip(config, FRAMES)[None], clip(config, FRAMES, seed=1)[None]
    mel[..., length:] = 0
    noise[..., :length] = mel[..., :length]
    with_zeros, with_noise = (encode(x, np.array([length])) for x in (mel, noise))
    assert with_zeros.token_mask.sum() == audio_tokens(np.array(length))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(with_noise))
    np.testing.assert_array_equal(with_zeros.tokens, with_noise.tokens)
    np.testing.assert_array_equal(with_zeros.keys, with_noise.keys)


def test_windows_of_a_block_attend_to_each_other(config, encode):
    """A block shorter than the released one gives other values, as a stream has them."""
    mel, lengths = hf.audio_windows(clip(config, 800), FRAMES)
    whole = encode(mel, lengths)
    pairs = zip(mel, lengths, strict=True)
    alone = np.stack([encode(m[None], n[None]).tokens[0] for m, n in pairs])
    assert (np.abs(whole.tokens - alone).max() > 0.01) == (config.block > FRAMES)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16(config, oracle, encode):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), to_flax(oracle.state_dict()))
    mel, lengths = hf.audio_windows(clip(config, 133), FRAMES)
    encoder = AudioEncoder(config, dtype=jnp.bfloat16)
    out = jax.jit(encoder.apply)({"params": params}, mel, lengths)
    expected = encode(mel, lengths).tokens[:1]
    assert out.tokens.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out.tokens, np.float32) - expected)
    assert error[out.token_mask].max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(8, 200), (1, 8, 150), (1, 7, 200), (5, 8, 200)])
def test_wrong_shape_is_refused(shape, unchecked):
    with pytest.raises(ValueError, match="spectrograms of one block's windows"):
        AudioEncoder(CONFIGS[0]).apply({}, jnp.zeros(shape), jnp.zeros(shape[0], int))


def test_parameter_count_as_released():
    config = AudioConfig(
        mel_bins=128,
        layers=32,
        hidden=1280,
        heads=20,
        ffn=5120,
        output=2048,
        n_window=50,
        block=800,
        channels=480,
    )
    mel = jax.ShapeDtypeStruct((1, 128, 100), jnp.float32)
    params = jax.eval_shape(AudioEncoder(config).init, jax.random.key(0), mel, jnp.zeros(1, int))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 647_927_168
