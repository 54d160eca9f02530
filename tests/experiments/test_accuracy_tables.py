"""Tables of the accuracy measurement and the page in which they are written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import accuracy_tables
from experiments.accuracy_results import Measurement
from experiments.measured_methods import FULL
from experiments.oracle_methods import BestSample
from experiments.small_model_export import small_config, small_tokenizer
from omnizip_jax.compression import AllTokens, FastV, OmniZipConfig, RandomTokens, Surprise
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
    # One of five layers has all tokens; 40 of 528 tokens are text, in all layers.
    assert 0.35 < staged["operations"] < 0.45


def test_clips_of_several_lengths():
    several = summary_of(np.array([4, 4, 4, 8]))
    lengths = accuracy_tables.lengths_table(several["rows"]).splitlines()
    assert lengths[0] == "| method | 8 s | 16 s |"
    assert lengths[4] == "| fastv, 35% | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) |"
    assert several["rows"]["random | 35%"]["cost"]["kept"] == pytest.approx(0.35, abs=2e-3)
    assert "## Long clips by length" in accuracy_tables.whole_tables({"long": several})


def test_best_sample_is_scored_by_its_best_seed():
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
    assert not any("dycoke" in line for line in short)  # not measured


PAGE_METHODS = {
    FULL: AllTokens(),
    "omnizip | 25%": OmniZipConfig(keep=0.25),
    "omnizip, causal | 25%": OmniZipConfig(keep=0.25, causal=True),
    "surprise | 25%": Surprise(keep=0.25),
}


@pytest.fixture(scope="module")
def page_summary() -> dict[str, accuracy_tables.Summary]:
    """OmniZip is right about six of ten clips, five if causal; Surprise about nine."""
    wrong = dict(zip(PAGE_METHODS, (0, 4, 5, 1), strict=True))
    clips = np.tile(np.arange(10)[:, None, None], (1, 1, 3))
    right = {name: clips >= number for name, number in wrong.items()}
    kept = {name: [50.0, 72.0] if name != FULL else [200.0, 288.0] for name in PAGE_METHODS}
    measured = Measurement(
        right,
        {name: np.tile(counts, (10, 1, 1)) for name, counts in kept.items()},
        kinds=np.full((10, 3), "count"),
        families=np.array([FAMILIES] * 10),
        windows=np.full(10, 4),
        text=np.full(10, 40.0),
    )
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    return {"easy": accuracy_tables.summarise(measured, PAGE_METHODS, config)}


def test_tables_of_comparisons(page_summary):
    made = accuracy_tables.tables(page_summary)
    assert made["clips"].splitlines()[2:] == ["| easy | 10 | 30 |"]
    heading = "| method | easy, 25% | easy, 15% |"
    retained = made["retained"].splitlines()
    assert retained[0] == heading and retained[2:] == [
        "| surprise | 90.0% | - |",
        "| omnizip | 60.0% | - |",
    ]
    (rival,) = made["rivals"].splitlines()[2:]
    assert rival.startswith("| omnizip | +30.0 (+") and rival.endswith(") | - |")
    assert made["variants of omnizip"].splitlines() == [
        heading,
        "| --- | ---: | ---: |",
        "| causal | -10.0 | - |",  # one of ten clips: not significant
    ]
    assert made["variants of surprise"].splitlines()[2:] == []
    assert "| omnizip | - | - | 60.0% | - |" in accuracy_tables.whole_tables(page_summary)


def test_tables_of_a_page_are_replaced(page_summary, tmp_path):
    words = "# Accuracy\n\n<!-- table: retained -->\n{}<!-- end -->\n\nWhy?\n"
    (tmp_path / "accuracy.md").write_text(words.format(""))
    for _ in range(2):
        accuracy_tables.write_tables(page_summary, tmp_path)
        filled = (tmp_path / "accuracy.md").read_text()
        assert filled == words.format(accuracy_tables.tables(page_summary)["retained"] + "\n")
    with pytest.raises(ValueError, match="unknown table 'lfet'; tables are clips,"):
        accuracy_tables.fill(
            "<!-- table: lfet -->\n<!-- end -->", accuracy_tables.tables(page_summary)
        )
    # Nothing is written.
    (tmp_path / "accuracy.md").write_text("<!-- table: long clips -->\n<!-- end -->")
    (tmp_path / "accuracy.json").write_text("as it was")
    with pytest.raises(ValueError, match="unknown table 'long clips'"):
        accuracy_tables.write_tables(page_summary, tmp_path)
    assert (tmp_path / "accuracy.json").read_text() == "as it was"


def test_files_for_the_documentation(page_summary, tmp_path):
    easy = page_summary["easy"]
    accuracy_tables.write_tables({"easy": easy, "hard": easy, "moving": easy}, tmp_path)
    read = json.loads((tmp_path / "accuracy.json").read_text())
    assert read["moving"] == easy
    whole = (tmp_path / "accuracy_tables.md").read_text()
    assert (
        "## Hard clips\n\n10 clips, 3 questions about each." in whole and "by length" not in whole
    )
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert not (tmp_path / "accuracy.md").exists()
