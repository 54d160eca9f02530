"""Accuracy of the small model: tables, goals, and a measurement."""

from __future__ import annotations

import pytest

from experiments import validation_accuracy
from experiments.accuracy_questions import KINDS
from experiments.measured_methods import FULL
from experiments.validation_accuracy import Answer
from omnizip_jax.compression import AllTokens


def _answers(difficulty, windows, kind, truths, right, fewer=None):
    return [
        Answer(difficulty, windows, clip, kind, truth, {FULL: ok, "fewer": less})
        for clip, (truth, ok, less) in enumerate(zip(truths, right, fewer or right, strict=True))
    ]


def test_missed_goals_are_listed():
    half = ["yes", "no"] * 50
    met = _answers("easy", 4, "silent", half, [True] * 98 + [False] * 2)
    assert validation_accuracy.missed_goals(met) == []
    low = _answers("easy", 4, "silent", half, [True] * 96 + [False] * 4)
    assert validation_accuracy.missed_goals(low) == ["easy: 96.0%, expected 97% to 100%"]
    # A difficulty without errors would hide differences between methods.
    assert validation_accuracy.missed_goals(_answers("hard", 4, "silent", half, [True] * 100)) == [
        "hard: 100.0%, expected 90% to 97%"
    ]


def test_a_kind_at_chance_is_found():
    met = _answers("easy", 4, "seen", ["yes", "no"] * 500, [True] * 1000)
    guessed = _answers("easy", 4, "silent", ["yes", "no"] * 10, [True, False] * 10)
    assert validation_accuracy.missed_goals(met + guessed) == [
        "easy, silent: 50.0%, commonest answer 50.0%"
    ]


def test_better_accuracy_with_fewer_tokens_is_found():
    right, fewer = [True] * 98 + [False] * 2, [True] * 99 + [False]
    answered = _answers("easy", 4, "seen", ["yes", "no"] * 50, right, fewer)
    assert validation_accuracy.missed_goals(answered) == []  # one answer is not significant
    # Goals apply to the lengths of a difficulty, this check to all lengths.
    longer = _answers(
        "easy", 30, "seen", ["yes", "no"] * 50, [True] * 80 + [False] * 20, [True] * 100
    )
    assert validation_accuracy.missed_goals(answered + longer) == ["easy, 60 s: better with fewer"]


def test_tables_have_a_row_for_every_length_and_kind():
    answered = [
        *_answers("easy", 4, "seen", ["yes", "yes", "no"], [True, True, False]),
        *_answers("long", 15, "next", ["low", "high"], [True, False]),
    ]
    rows = validation_accuracy.lengths_table(answered).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| easy", "8 s", "3"],
        ["| long", "30 s", "2"],
    ]
    assert "66.7" in rows[0] and "50.0" in rows[1]
    kinds = validation_accuracy.kinds_table(answered).splitlines()[2:]
    assert kinds == ["| next | 50.0% | - | 50.0% |", "| seen | 66.7% | 66.7% | - |"]


@pytest.mark.slow
def test_the_small_model_answers_easy_questions(small):
    """Easy clips of 8 s, one question of every kind that a clip allows for."""
    methods = {FULL: AllTokens()}
    answered = list(validation_accuracy.ask_clips(small, "easy", 4, range(5), methods))
    assert len({(a.clip, a.kind) for a in answered}) == len(answered) > 5 * 9
    assert {a.kind for a in answered} < set(KINDS)
    assert sum(a.right[FULL] for a in answered) >= 0.9 * len(answered)
