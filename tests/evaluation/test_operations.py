"""Counts of operations against a table derived by hand, and against loops over products."""

import itertools

import pytest

from benchmarks.presets import PRESETS
from omnizip_jax.evaluation.operations import (
    cache_values,
    decode_weights,
    paper_operations,
    prefill_operations,
)
from omnizip_jax.models.config import TextConfig

FULL, KEPT_45, KEPT_35 = 21_692, 9_794, 7_631  # 64 windows with 60 tokens of text

TOY = TextConfig(
    vocabulary=11,
    layers=3,
    hidden=8,
    heads=4,
    kv_heads=2,
    ffn=5,
    rope_theta=1e4,
    mrope_section=(1, 0, 0),
    rms_eps=1e-6,
    max_positions=64,
    tied=True,
)


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
    config = PRESETS[preset].model.text
    counted = prefill_operations(config, [tokens] * config.layers)
    assert counted == pytest.approx(tera * 1e12, rel=2e-3)


@pytest.mark.parametrize(
    ("preset", "tokens", "speedup"),
    [("7b", KEPT_45, 2.93), ("7b", KEPT_35, 3.99), ("3b", KEPT_45, 3.26), ("3b", KEPT_35, 4.56)],
)
def test_speedup_by_the_papers_equation(preset, tokens, speedup):
    config = PRESETS[preset].model.text
    full, kept = (paper_operations(config, [n] * config.layers, 0) for n in (FULL, tokens))
    assert full / kept == pytest.approx(speedup, 1e-2)


@pytest.mark.parametrize(("preset", "values"), [("3b", 36_864 / 2), ("7b", 57_344 / 2)])
def test_cache_of_one_token(preset, values):
    config = PRESETS[preset].model.text
    assert cache_values(config, [1] * config.layers) == values


def test_weights_read_for_one_token():
    assert 2 * decode_weights(PRESETS["7b"].model.text) == pytest.approx(14.1e9, rel=0.01)


@pytest.mark.parametrize("tokens", [(7, 7, 7), (9, 4, 1), (5, 5, 0)])
def test_the_true_count_is_that_of_every_product(tokens):
    """Every product of a row and a column, one after the other."""
    rows = {"q": 8, "k": 4, "v": 4, "o": 8, "gate": 5, "up": 5}
    multiplied = TOY.hidden * TOY.vocabulary
    for token in itertools.chain(*(range(count) for count in tokens)):
        multiplied += sum(TOY.hidden * out for out in rows.values()) + TOY.ffn * TOY.hidden
        for _head, _key in itertools.product(range(TOY.heads), range(token + 1)):
            multiplied += 2 * TOY.head_dim  # a score, and a value's part
    assert prefill_operations(TOY, tokens) == 2 * multiplied


@pytest.mark.parametrize("n", [0, 13])
def test_equation_9_as_it_is_printed(n):
    t, r, d, m = TOY.layers, 100, TOY.hidden, TOY.ffn
    prefill = t * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)
    sampling_params = t * r * ((4 * d**2 + 2 * d * m) + 2 * (d * n + d * (r + 1) / 2))
    assert paper_operations(TOY, [n] * t) == prefill + sampling_params
