"""The log-mel spectrogram against transformers' feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from omnizip_jax.media.sound import (
    HISTORY,
    HOP,
    LOOKAHEAD,
    clip_log_mel,
    log_mel,
    loudness,
    mel_filters,
    mel_power,
)


def noise(samples, seed=0):
    """Noise that swells over 60 dB, with a loud knock at the very end."""
    random = np.random.default_rng(seed)
    wave = random.standard_normal(samples) * np.geomspace(1e-4, 0.1, samples)
    wave[-1] = 0.9
    return wave.astype(np.float32)


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_are_slaneys(bins):
    expected = mel_filter_bank(201, bins, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(bins), expected.T, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 201, 16_000, 77_777])
def test_equals_the_feature_extractor(samples):
    wave = noise(samples)
    inputs = WhisperFeatureExtractor(feature_size=128)(
        wave, sampling_rate=16_000, padding="max_length", return_attention_mask=True
    )
    frames = int(inputs["attention_mask"][0].sum())
    mel = clip_log_mel(wave, 128)
    assert mel.shape == (128, frames) and mel.dtype == np.float32
    np.testing.assert_allclose(mel, inputs["input_features"][0][:, :frames], atol=1e-5)


def test_equals_the_feature_extractor_past_300_seconds():
    """Given more room than the released one has, and in its float64 path: with torch it works in
    float32, which puts it off by 3e-5 where sound this long is quietest."""
    samples = 305 * 16_000 + 5
    wave = noise(samples)
    padded = np.pad(wave, (0, 16_000))
    extractor = WhisperFeatureExtractor(feature_size=128)
    expected = extractor._np_extract_fbank_features(padded[None], "cpu")[0]
    frames = 30_501
    np.testing.assert_allclose(clip_log_mel(wave, 128), expected[:, :frames], atol=1e-6)


def test_blocks_with_their_neighbourhood_are_exact():
    """What a live stream does: the same power in pieces, the maximum handed in."""
    wave = noise(5 * 16_000)
    padded = np.concatenate([wave[HISTORY:0:-1], wave, np.zeros(500, np.float32)])
    whole = mel_power(padded[: HISTORY + 500 * HOP + LOOKAHEAD], 128)
    pieces = [
        mel_power(padded[start * HOP :][: HISTORY + count * HOP + LOOKAHEAD], 128)
        for start, count in ((0, 200), (200, 1), (201, 299))
    ]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    after = mel_power(padded[500 * HOP :][: HISTORY + HOP + LOOKAHEAD], 128)
    maximum = float(max(loudness(whole).max(), loudness(after).max()))
    np.testing.assert_array_equal(log_mel(whole, maximum), clip_log_mel(wave, 128))


def test_silence_and_nothing():
    assert clip_log_mel(np.zeros(0, np.float32), 128).shape == (128, 0)
    np.testing.assert_allclose(clip_log_mel(np.zeros(320, np.float32), 128), -1.5, rtol=1e-6)
