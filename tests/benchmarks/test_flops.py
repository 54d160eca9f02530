"""Operation counts against values derived by hand."""

import pytest

from benchmarks.flops import compression_flops, decode_weights, encoder_flops
from benchmarks.presets import PRESETS


def test_encoders_of_64_windows():
    # 10 ms of audio and 122 ms of video at 790 TFLOP/s.
    assert encoder_flops(PRESETS["7b"].model, 64) == pytest.approx(0.132 * 790e12, rel=0.03)


def test_compression_of_64_windows():
    assert compression_flops(64, 3584) == pytest.approx(16.3e9, rel=0.03)


def test_weights_read_for_one_token():
    assert 2 * decode_weights(PRESETS["7b"].model.text) == pytest.approx(14.1e9, rel=0.01)
