"""A stopped measurement resumes, and a new row is measured alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from experiments import accuracy, accuracy_questions
from experiments.accuracy import measure_to, measured
from experiments.accuracy_questions import QUESTION_SETS
from experiments.accuracy_results import Results, results_header
from experiments.clip_inputs import Row
from experiments.measured_methods import FULL, RANDOM_SEEDS
from experiments.oracle_methods import Oracle
from omnizip_jax.compression import AllTokens, RandomTokens
from omnizip_jax.testbed.clip_questions import FAMILIES
from omnizip_jax.testbed.synthetic_clips import DIFFICULTIES

ROWS = {FULL: Row(AllTokens()), "random | 35%": Row(RandomTokens(keep=0.35))}
EASY = QUESTION_SETS["easy"]


@pytest.fixture
def asked(monkeypatch):
    """The rows of every measured block."""
    calls = []
    ask = accuracy._answer_block

    def counted(params, rows, *rest):
        calls.append(sorted(rows))
        return ask(params, rows, *rest)

    monkeypatch.setattr(accuracy, "_answer_block", counted)
    monkeypatch.setattr(accuracy_questions, "BLOCK_WINDOWS", 8)  # two clips
    return calls


@pytest.mark.slow
def test_a_run_resumes(small, tmp_path, asked):
    whole, stopped = tmp_path / "easy.jsonl", tmp_path / "stopped.jsonl"
    header = results_header(small, EASY, "test")
    results = Results(whole, header)
    measure_to(results, small, ROWS, EASY, 3)
    assert asked == [sorted(ROWS)] * 2
    first = measured(results, small, ROWS, EASY, 3)
    for name, right in first.right.items():
        assert right.shape == (3, RANDOM_SEEDS if "random" in name else 1, len(FAMILIES))
    assert first.kept["random | 35%"].mean(0).sum() == round(0.35 * 4 * 122)
    assert first.families[0].tolist() == list(FAMILIES) and first.windows.tolist() == [4] * 3
    # Stopped in the middle of a line: the rest is measured again, with the same answers.
    content = whole.read_text()
    lines = content.splitlines(keepends=True)
    stopped.write_text("".join(lines[:2]) + lines[2][:40])
    again = Results(stopped, header)
    assert measured(again, small, ROWS, EASY, 3) is None
    asked.clear()
    measure_to(again, small, ROWS, EASY, 3)
    assert asked == [["random | 35%"], sorted(ROWS)] and stopped.read_text() == content
    # A new row is measured alone.
    asked.clear()
    more = ROWS | {"oracle | 25%": Row(Oracle(keep=0.25))}
    measure_to(Results(whole, header), small, more, EASY, 2)
    assert asked == [["oracle | 25%"]]
    found = measured(Results(whole, header), small, more, EASY, 3)
    assert set(found.right) == set(ROWS)  # the oracle lacks a clip
    np.testing.assert_array_equal(found.right[FULL], first.right[FULL])
    # A row whose configuration has changed, and one whose answers are discarded.
    results = Results(whole, header)
    changed = ROWS | {"random | 35%": Row(RandomTokens(keep=0.35, split="paper"))}
    assert results.missing("random | 35%", changed["random | 35%"], range(3)) == [0, 1, 2]
    results.discard(["random | 35%"])
    for now in (results, Results(whole, header)):
        assert now.missing("random | 35%", ROWS["random | 35%"], range(3)) == [0, 1, 2]
        assert now.missing(FULL, ROWS[FULL], range(3)) == []


def test_files_with_other_settings_are_rejected(small, tmp_path):
    file = tmp_path / "results.jsonl"
    Results(file, results_header(small, EASY, "test"))
    with pytest.raises(ValueError, match="other difficulty and questions: choose another folder"):
        Results(file, results_header(small, QUESTION_SETS["hard"], "test") | {"questions": []})
    with pytest.raises(ValueError, match="other split"):
        Results(file, results_header(small, EASY, "test") | {"split": "validation"})
    for content in ("hello\n", ""):
        file.write_text(content)
        with pytest.raises(ValueError, match="not a results file"):
            Results(file, results_header(small, EASY, "test"))


@pytest.mark.slow
def test_clips_of_several_lengths(small, tmp_path, monkeypatch):
    """Clips of four and five windows."""
    look = dataclasses.replace(DIFFICULTIES["long"], windows=(4, 5))
    monkeypatch.setitem(DIFFICULTIES, "long", look)
    long = dataclasses.replace(QUESTION_SETS["long"], per_clip=4)
    monkeypatch.setattr(accuracy_questions, "BLOCK_WINDOWS", 4)
    results = Results(tmp_path / "long.jsonl", results_header(small, long, "test"))
    rows = {FULL: Row(AllTokens(), audio="live")}
    measure_to(results, small, rows, long, 3)
    lines = (tmp_path / "long.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["clips"] for line in lines] == [[0], [2], [1]]
    found = measured(results, small, rows, long, 3)
    assert found.right[FULL].shape == (3, 1, 4)
    assert found.windows.tolist() == [4, 5, 4]
    assert found.kept[FULL][:, 0].sum(1).tolist() == [4 * 122, 5 * 122, 4 * 122]
