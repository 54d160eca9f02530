"""A measurement that is stopped goes on, and says so if it cannot."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from omnizip_jax.compression import AllTokens, RandomTokens
from omnizip_jax.testbed import measure
from omnizip_jax.testbed.clips import make_clip
from omnizip_jax.testbed.measure import FULL, Measurement, Trial
from omnizip_jax.testbed.questions import FAMILIES, draw_question
from omnizip_jax.testbed.rows import RANDOM_SEEDS

METHODS = {FULL: AllTokens(), "random | 35%": RandomTokens(keep=0.35)}


def test_a_run_goes_on_where_it_was(small, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK", 2)
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    measured = measure.measure_to(whole, small, METHODS, 4, "easy")
    content = whole.read_text()
    lines = content.splitlines(keepends=True)
    stopped.write_text("".join(lines[:2]) + lines[2][:40])  # one clip, and half of another
    again = measure.measure_to(stopped, small, METHODS, 4, "easy")
    assert stopped.read_text() == content
    for name, right in measured.right.items():
        assert right.shape == (4, RANDOM_SEEDS if "random" in name else 1, len(FAMILIES))
        np.testing.assert_array_equal(again.right[name], right)
    assert measured.kept["random | 35%"].sum() == round(0.35 * 4 * 122)
    # Nothing is asked again, and what was measured otherwise is refused.
    monkeypatch.setattr(measure, "_measure_block", None)
    measure.measure_to(whole, small, METHODS, 4, "easy")
    with pytest.raises(ValueError, match="other difficulty: give another folder"):
        measure.measure_to(whole, small, METHODS, 4, "hard")
    with pytest.raises(ValueError, match="other methods"):
        measure.measure_to(whole, small, {FULL: AllTokens()}, 4, "easy")
    whole.write_text("hello\n")
    with pytest.raises(ValueError, match="no file of results"):
        measure.measure_to(whole, small, METHODS, 4, "easy")


def test_trials_become_arrays():
    trial = Trial(1, ["silent", "count", "seen"], {"it": ["101", "111"]}, {"it": [[2, 6]]}, 30.0)
    other = dataclasses.replace(trial, clip=0, right={"it": ["000", "001"]})
    measured = Measurement.of([Trial(**json.loads(json.dumps(dataclasses.asdict(trial)))), other])
    assert measured.right["it"].tolist() == [
        [[False] * 3, [False, False, True]],
        [[True, False, True], [True] * 3],
    ]
    assert measured.kept["it"].tolist() == [[1, 3]]


def test_a_question_of_each_family_can_be_drawn_for_test_clips():
    for seed in range(20):
        things = make_clip(seed).things
        for family in FAMILIES:
            draw_question(things, np.random.default_rng([1, seed]), family)
