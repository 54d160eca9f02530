"""A stream that goes on: the process, the cache, the positions and the programs stay as they are.

``python -m benchmarks.endurance`` does the same for 10,000 windows, and measures time as well.
"""

from __future__ import annotations

import pytest

from benchmarks.endurance import endure
from omnizip_jax import WindowSpec

SPEC = WindowSpec(grid_slots=16)
WINDOWS, EVERY = 300, 75
NOISE = 24 * 2**20  # bytes that the allocator may take in one step; a cache per window would be 50


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["recent", "fading"])
def test_nothing_grows(params, random_windows, memory):
    clip = random_windows([2, 2, 1, 0, 2, 2], [200, 200, 120, 200, 0, 200])
    windows = [clip.replace(**{n: x[i] for n, x in vars(clip).items()}) for i in range(6)]
    stretches = list(endure(params, windows, WINDOWS, EVERY, memory, SPEC, capacity=704))
    first, *rest = stretches[1:]
    assert len(rest) == 2
    for stretch in rest:
        assert stretch.rss <= first.rss + NOISE
        assert stretch.programs == first.programs
        assert stretch.evictions >= 5
        assert abs(stretch.fill[1] - first.fill[1]) < 0.1
        assert stretch.position <= 1.2 * first.position + 200
        assert stretch.units <= 1.5 * first.units + 5
