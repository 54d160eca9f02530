"""Counts of operations against the table in which they were derived by hand."""

import pytest

from benchmarks.flops import (
    cache_values,
    compression_flops,
    decode_weight_count,
    encoder_flops,
    paper_flops,
    prefill_flops,
)
from benchmarks.presets import PRESETS

FULL, KEPT_45, KEPT_35 = 21_692, 9_794, 7_631  # 64 windows with 60 tokens of text


@pytest.mark.parametrize(
    ("preset", "tokens", "tera"),
    [
        ("7b", FULL, 377.5),
        ("7b", KEPT_45, 147.1),
        ("7b", KEPT_35, 111.3),
        ("3b", FULL, 189.8),
        ("3b", KEPT_45, 68.5),
        ("3b", KEPT_35, 50.9),
    ],
)
def test_true_count_of_a_prefill(preset, tokens, tera):
    assert prefill_flops(PRESETS[preset].model.text, tokens) == pytest.approx(tera * 1e12, rel=2e-3)


@pytest.mark.parametrize(
    ("preset", "tokens", "speedup"),
    [("7b", KEPT_45, 2.93), ("7b", KEPT_35, 3.99), ("3b", KEPT_45, 3.26), ("3b", KEPT_35, 4.56)],
)
def test_speedup_by_the_papers_equation(preset, tokens, speedup):
    config = PRESETS[preset].model.text
    assert paper_flops(config, FULL) / paper_flops(config, tokens) == pytest.approx(speedup, 1e-2)


def test_encoders_of_64_windows():
    # 10 ms of sound and 122 ms of picture at 790 TFLOP/s.
    assert encoder_flops(PRESETS["7b"].model, 64) == pytest.approx(0.132 * 790e12, rel=0.03)


def test_compression_of_64_windows():
    assert compression_flops(64, 3584) == pytest.approx(16.3e9, rel=0.03)


@pytest.mark.parametrize(("preset", "values"), [("3b", 36_864 / 2), ("7b", 57_344 / 2)])
def test_cache_of_one_token(preset, values):
    assert cache_values(PRESETS[preset].model.text, 1) == values


def test_weights_read_for_one_token():
    assert 2 * decode_weight_count(PRESETS["7b"].model.text) == pytest.approx(14.1e9, rel=0.01)
