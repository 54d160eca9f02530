"""95 % confidence intervals of means over questions and of medians.

Questions about one clip are not independent: the bootstrap resamples whole clips.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over questions, and its bootstrap 95 % interval over clips."""

    mean: float
    low: float
    high: float
    questions: int


@dataclasses.dataclass(frozen=True)
class Median:
    """A median, and its 95 % interval by order statistics; None for fewer than six values."""

    median: float
    low: float | None
    high: float | None


def mean_over(values: Sequence[float], clips: Sequence[str]) -> Mean:
    """The mean of one value per question; for a paired comparison, give the differences.

    Args:
        values: of each question.
        clips: the clip of each question.
    """
    numbers, owners = np.asarray(values, np.float64), np.unique(clips, return_inverse=True)[1]
    sums, counts = np.bincount(owners, numbers), np.bincount(owners)
    drawn = np.random.default_rng(0).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES
    )
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return Mean(float(numbers.mean()), float(low), float(high), len(numbers))


def median_of(values: Sequence[float]) -> Median:
    """The median of values such as times."""
    ordered, k = np.sort(np.asarray(values, np.float64)).tolist(), _rank(len(values))
    low, high = (ordered[k - 1], ordered[-k]) if k else (None, None)
    return Median(float(np.median(ordered)), low, high)


@functools.cache
def _rank(count: int) -> int:
    """The largest k for which the k-th smallest and k-th largest values bound a 95 % interval.

    At most 2.5 % of samples have fewer than k of ``count`` values below the true median (a binomial
    with one half); 0 if there is no such k.
    """
    k, term, below = 0, 1, 1  # of 2^count: with k values below, and with at most k
    while 40 * below <= 2**count:
        k += 1
        term = term * (count - k + 1) // k
        below += term
    return k
