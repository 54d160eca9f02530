"""95 % confidence intervals of means over questions and of medians.

Questions about one clip are not independent: the bootstrap resamples whole clips.
"""

from __future__ import annotations

import dataclasses
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
    """A median, and its 95 % interval by order statistics."""

    median: float
    low: float
    high: float


def mean_over(values: Sequence[float], clips: Sequence[str], seed: int = 0) -> Mean:
    """The mean of one value per question; for a paired comparison, give the differences.

    Args:
        values: of each question.
        clips: the clip of each question.
        seed: of the bootstrap.
    """
    numbers, owners = np.asarray(values, np.float64), np.unique(clips, return_inverse=True)[1]
    sums, counts = np.bincount(owners, numbers), np.bincount(owners)
    drawn = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES
    )
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return Mean(float(numbers.mean()), float(low), float(high), len(numbers))


def median_of(values: Sequence[float]) -> Median:
    """The median of values such as times."""
    ordered, count = np.sort(np.asarray(values, np.float64)), len(values)
    reach = 0.98 * np.sqrt(count)  # 1.96 standard deviations of a binomial with one half
    low, high = int(np.floor(count / 2 - reach)), int(np.ceil(count / 2 + reach)) - 1
    return Median(
        float(np.median(ordered)),
        float(ordered[max(low, 0)]),
        float(ordered[min(high, count - 1)]),
    )
