"""Operation counts against values derived by hand."""

import pytest

from benchmarks.flops import (
    audio_flops,
    compression_flops,
    decode_weights,
    encoder_flops,
    vision_flops,
)
from benchmarks.presets import PRESETS
from omnizip_jax.evaluation.decoder_cost import prefill_operations


def test_encoders_of_64_windows():
    # 10 ms of audio and 122 ms of video at 790 TFLOP/s.
    assert encoder_flops(PRESETS["7b"].model, 64) == pytest.approx(0.132 * 790e12, rel=0.03)


def test_compression_of_64_windows():
    assert compression_flops(64, 3584) == pytest.approx(16.3e9, rel=0.03)


def test_weights_read_for_one_token():
    assert 2 * decode_weights(PRESETS["7b"].model.text) == pytest.approx(14.1e9, rel=0.01)


def test_qwen3():
    """TFLOP of a grid of video, GFLOP of a second of audio, and the prefill of 128 s with text."""
    config = PRESETS["30b"].model
    assert vision_flops(config.vision, 144) == pytest.approx(0.55e12, rel=0.01)
    assert audio_flops(config.audio) / 2 == pytest.approx(21e9, rel=0.01)
    assert prefill_operations(config.text, [20_156] * 48) == pytest.approx(269.8e12, rel=1e-3)
    assert 2 * decode_weights(config.text) == pytest.approx(6.08e9, rel=1e-3)  # 8 experts a layer
