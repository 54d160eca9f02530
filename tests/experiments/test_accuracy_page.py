"""The page in which a measurement writes its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import accuracy_page
from experiments.accuracy_results import Measurement
from experiments.accuracy_tables import Summary, summarise, whole_tables
from experiments.measured_methods import FULL
from experiments.small_model_export import small_config, small_tokenizer
from omnizip_jax.compression import AllTokens, OmniZipConfig, Surprise
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clip_questions import FAMILIES

METHODS = {
    FULL: AllTokens(),
    "omnizip | 25%": OmniZipConfig(keep=0.25),
    "omnizip, causal | 25%": OmniZipConfig(keep=0.25, causal=True),
    "surprise | 25%": Surprise(keep=0.25),
}


@pytest.fixture(scope="module")
def summary() -> dict[str, Summary]:
    """Of ten clips OmniZip is right about six, five if it is causal; Surprise about nine."""
    wrong = dict(zip(METHODS, (0, 4, 5, 1), strict=True))
    clips = np.tile(np.arange(10)[:, None, None], (1, 1, 3))
    right = {name: clips >= number for name, number in wrong.items()}
    kept = {name: [50.0, 72.0] if name != FULL else [200.0, 288.0] for name in METHODS}
    measured = Measurement(
        right,
        {name: np.tile(counts, (10, 1, 1)) for name, counts in kept.items()},
        kinds=np.full((10, 3), "count"),
        families=np.array([FAMILIES] * 10),
        windows=np.full(10, 4),
        text=np.full(10, 40.0),
    )
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    return {"easy": summarise(measured, METHODS, config)}


def test_tables_of_what_is_compared(summary):
    made = accuracy_page.tables(summary)
    assert made["clips"].splitlines()[2:] == ["| easy | 10 | 30 |"]
    heading = "| method | easy, 25% | easy, 15% |"
    left = made["left"].splitlines()
    assert left[0] == heading and left[2:] == [
        "| surprise | 90.0% | - |",
        "| omnizip | 60.0% | - |",
    ]
    (rival,) = made["rivals"].splitlines()[2:]
    assert rival.startswith("| omnizip | +30.0 (+") and rival.endswith(") | - |")
    assert made["parts of omnizip"].splitlines() == [
        heading,
        "| --- | ---: | ---: |",
        "| causal | -10.0 | - |",  # of one clip of ten the interval has nothing in it
    ]
    assert made["parts of surprise"].splitlines()[2:] == []
    assert "| omnizip | - | - | 60.0% | - |" in whole_tables(summary)


def test_a_page_is_filled_again(summary, tmp_path):
    words = "# Accuracy\n\n<!-- table: left -->\n{}<!-- end -->\n\nWhy?\n"
    (tmp_path / "accuracy.md").write_text(words.format(""))
    for _ in range(2):
        accuracy_page.write_tables(summary, tmp_path)
        filled = (tmp_path / "accuracy.md").read_text()
        assert filled == words.format(accuracy_page.tables(summary)["left"] + "\n")
    with pytest.raises(ValueError, match="no table is called 'lfet'; those that were made: clips,"):
        accuracy_page.fill("<!-- table: lfet -->\n<!-- end -->", accuracy_page.tables(summary))
    # Nothing is half written.
    (tmp_path / "accuracy.md").write_text("<!-- table: long clips -->\n<!-- end -->")
    (tmp_path / "accuracy.json").write_text("as it was")
    with pytest.raises(ValueError, match="no table is called 'long clips'"):
        accuracy_page.write_tables(summary, tmp_path)
    assert (tmp_path / "accuracy.json").read_text() == "as it was"


def test_files_for_the_documentation(summary, tmp_path):
    easy = summary["easy"]
    accuracy_page.write_tables({"easy": easy, "hard": easy, "moving": easy}, tmp_path)
    read = json.loads((tmp_path / "accuracy.json").read_text())
    assert read["moving"] == easy
    whole = (tmp_path / "accuracy_tables.md").read_text()
    assert (
        "## Hard clips\n\n10 clips, 3 questions about each." in whole and "by length" not in whole
    )
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert not (tmp_path / "accuracy.md").exists()
