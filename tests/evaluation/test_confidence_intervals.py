"""Coverage of the intervals of means and medians on random samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from omnizip_jax.evaluation.confidence_intervals import mean_over, median_of


def test_a_mean_over_questions():
    found = mean_over([1, 0, 1, 1], ["a", "a", "b", "c"])
    assert found.mean == 0.75 and found.questions == 4
    assert 0 <= found.low <= 0.75 <= found.high <= 1


def test_intervals_cover_the_true_mean():
    """Of 200 draws, 95 % of the intervals should hold the mean that the draws come from."""
    random = np.random.default_rng(0)
    clips = np.arange(100).astype(str)
    held = 0
    for _ in range(200):
        found = mean_over(random.random(100) < 0.7, clips)
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 198


def test_questions_about_one_clip_are_resampled_together():
    values, clips = np.repeat([0.0, 1.0] * 20, 10), np.repeat(np.arange(40), 10).astype(str)
    together, apart = mean_over(values, clips), mean_over(values, np.arange(400).astype(str))
    # Ten copies of a clip add no information: the interval is sqrt(10) times as wide.
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(3.2, abs=0.5)


def test_intervals_are_deterministic():
    assert mean_over([1, 0, 1], ["a", "b", "c"]) == mean_over([1, 0, 1], ["a", "b", "c"])


def test_intervals_cover_the_true_median():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = median_of(random.exponential(size=51))
        held += found.low <= np.log(2) <= found.high
    assert 180 <= held <= 200


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_median_of_few_values_has_no_interval(count):
    """The range of five values contains their median in 1 - 2 / 2^5 = 94 % of samples."""
    values = [3.0, 1.0, 2.0, 5.0, 4.0][:count]
    found = median_of(values)
    assert (found.low, found.high) == (None, None)
    assert found.median == np.median(values)


@pytest.mark.parametrize("count", [*range(6, 40), 101, 1000])
def test_the_interval_of_a_median_is_the_narrowest_with_95_percent(count):
    """Ranks by the binomial distribution: the interval covers 95 %, the next narrower less."""
    found = median_of(np.random.default_rng(count).permutation(count).tolist())
    rank = round(found.low) + 1  # of the smaller bound, from 1; the values are their own ranks
    assert found.high == count - rank and found.median == (count - 1) / 2
    below = [sum(math.comb(count, i) for i in range(k)) / 2**count for k in (rank, rank + 1)]
    assert 1 - 2 * below[0] >= 0.95 > 1 - 2 * below[1]
