"""The small model sees and hears in every precision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments.accuracy import measure
from experiments.accuracy_questions import QUESTION_SETS
from experiments.accuracy_results import Measurement
from experiments.clip_inputs import Row
from experiments.measured_methods import FULL
from experiments.quantized_accuracy import PRECISIONS, ROWS, compare, load_precision
from omnizip_jax.compression import AllTokens

CLIPS = 24


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
def test_colours_are_right(name, tmp_path):
    params, questions = load_precision(name, tmp_path), QUESTION_SETS["easy"]
    blocks = measure(params, {FULL: Row(AllTokens())}, questions, range(CLIPS), progress=False)
    measured = Measurement.of(itertools.chain(*blocks), params, questions)
    colours = np.char.find(measured.kinds.astype(str), "colour") >= 0
    assert colours.sum() >= CLIPS / 2
    assert measured.right[FULL][:, 0][colours].mean() >= 0.9


def test_differences_are_paired():
    clips, questions = 2, 3

    def answers(right):
        shape = (clips, 1, questions)
        kinds = np.full((clips, questions), "seen")
        rows = {name: np.array(right, bool).reshape(shape) for name in ROWS}
        return Measurement(rows, {}, kinds, kinds, np.full(clips, 4), np.full(clips, 9.0))

    base, other = answers([1, 1, 1, 1, 0, 0]), answers([1, 0, 1, 1, 0, 1])
    lines = compare({"easy": {"float32": base, "int8": other}}).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert lines[2].startswith("| easy, all tokens | 6 | 66.7 | +0.0 (")
