"""What a measurement looks like."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import accuracy_tables
from experiments.accuracy_results import Measurement
from experiments.measured_methods import FULL
from experiments.reference_methods import BestSample
from experiments.small_model_export import small_config, small_tokenizer
from omnizip_jax.compression import AllTokens, FastV, RandomTokens
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clip_questions import FAMILIES

METHODS = {
    FULL: AllTokens(),
    "random | 35%": RandomTokens(keep=0.35),
    "fastv | 35%": FastV(keep=0.35),
}


def summary_of(windows):
    right = {
        FULL: np.ones((4, 1, 3), bool),
        "random | 35%": np.array([[[1, 0, 1]] * 5] * 4, bool),
        "fastv | 35%": np.array([[[1, 1, 1]]] * 3 + [[[0, 0, 0]]], bool),
    }
    kept = {
        FULL: np.array([[200.0, 288.0]]),
        "random | 35%": np.array([[70.2, 100.8]]),
        "fastv | 35%": np.array([[200.0, 288.0], [37.6, 53.9]]),
    }
    measured = Measurement(
        right,
        {name: per_clip[None] * windows[:, None, None] / 4 for name, per_clip in kept.items()},
        kinds=np.array([["silent", "count", "seen"]] * 4),
        families=np.array([FAMILIES] * 4),
        windows=windows,
        text=np.full(4, 40.0),
    )
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    return accuracy_tables.summarise(measured, METHODS, config)


@pytest.fixture(scope="module")
def summary():
    return summary_of(np.full(4, 4))


@pytest.fixture(scope="module")
def rows(summary):
    return summary["rows"]


def test_the_table_compares_with_all_tokens(rows):
    lines = accuracy_tables.accuracy_table(rows).splitlines()
    assert all(family in lines[0] for family in FAMILIES)
    assert lines[3].startswith("| random, 35% | 35.0% | 35.0% |")
    assert "| 100.0% | 0.0% | 100.0% | 66.7% | +0.0 (+0.0 to +0.0) | -33.3" in lines[3]
    by_kind = accuracy_tables.kinds_table(rows, 0.35).splitlines()
    assert by_kind[0] == "| method | count | seen | silent |"
    assert by_kind[3] == "| random, 35% | 0% | 100% | 100% |"


def test_costs_are_shares_of_all_tokens(rows):
    assert rows[FULL]["cost"]["operations"] == rows[FULL]["cost"]["by_layer"] == 1
    staged = rows["fastv | 35%"]["cost"]
    assert staged["kept"] == 1 and staged["by_layer"] == pytest.approx(0.35, abs=1e-3)
    # One of five layers reads everything; text is 40 of 528 tokens, which all layers read.
    assert 0.35 < staged["operations"] < 0.45


def test_clips_of_several_lengths():
    several = summary_of(np.array([4, 4, 4, 8]))
    lengths = accuracy_tables.lengths_table(several["rows"]).splitlines()
    assert lengths[0] == "| method | 8 s | 16 s |"
    assert lengths[4] == "| fastv, 35% | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) |"
    assert several["rows"]["random | 35%"]["cost"]["kept"] == pytest.approx(0.35, abs=2e-3)
    assert "## Long clips by length" in accuracy_tables.whole_tables({"long": several})


def test_of_what_may_choose_the_best_seed_counts():
    right = np.array([[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 0]]], bool)
    best = accuracy_tables.score(BestSample(keep=0.25, samples=2), right)
    np.testing.assert_array_equal(best, [[1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(
        accuracy_tables.score(RandomTokens(keep=0.25), right)[0], [0.5, 0, 0.5]
    )


def test_the_short_table(summary):
    short = accuracy_tables.short_table({"easy": summary, "hard": summary}, [0.35]).splitlines()
    assert short[0] == "| method | easy, 35% | hard, 35% |"
    assert "| random | 66.7% | 66.7% |" in short
    assert not any("dycoke" in line for line in short)  # it was not measured
