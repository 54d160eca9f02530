"""Which picture stands for which moment, against a search over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnizip_jax.media.clock import FrameSampler, Picture, Sound, continue_sound, grid_position


def pictures(times, end):
    ends = [*times[1:], end]
    return [
        Picture(a, b, 9, 16, lambda height, width: np.zeros((height, width, 3), np.uint8))
        for a, b in zip(times, ends, strict=True)
    ]


def sample(sampler, frames):
    return [pair for frame in frames for pair in sampler.push(frame)] + sampler.finish()


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    start=st.integers(0, 4000),
    spacing=st.sampled_from([0.5, 0.77, 3.0]),
)
def test_samples_are_what_is_on_display(gaps, start, spacing):
    edges = (start + np.cumsum([0, *gaps])) / 1000  # milliseconds, as in a container
    frames = pictures(edges[:-1].tolist(), float(edges[-1]))
    expected = []
    for index in range(int(edges[-1] / spacing) + 1):
        middle = (index + 0.5) * spacing + 0.001  # a millisecond of rounding is forgiven
        expected += [(index, f) for f in frames if f.start <= middle < f.end]
    # Times closer to the boundary than floats can tell may go either way.
    middles = (np.arange(index + 1) + 0.5) * spacing + 0.001
    if np.abs(middles[:, None] - edges).min() < 1e-9:
        return
    sampler = FrameSampler(spacing)
    wanted = [f for f in frames if sampler.wants(f.start, f.end) or f is frames[-1]]
    got = sample(sampler, frames)
    assert got == expected if expected else [f for _, f in got] == [frames[-1]]
    # Frames that are not wanted change nothing.
    assert sample(FrameSampler(spacing), wanted) == got


def test_a_tail_shorter_than_half_an_interval_is_not_sampled():
    frames = pictures((np.arange(300) / 29.97).tolist(), 300 / 29.97)  # 10.01 s
    assert [index for index, _ in sample(FrameSampler(0.5), frames)] == list(range(20))


def test_sound_gaps_overlaps_and_jitter():
    ones = np.ones(1600, np.float32)
    assert continue_sound(1600, Sound(0.1, ones)) is ones
    assert continue_sound(1600, Sound(0.13, ones)) is ones
    gap = continue_sound(1600, Sound(0.2, ones))
    assert len(gap) == 3200 and not gap[:1600].any() and gap[1600:].all()
    assert len(continue_sound(3200, Sound(0.1, ones))) == 0
    assert len(continue_sound(0, Sound(-0.01, ones))) == 1440  # before the clip starts
    with pytest.raises(ValueError, match="jump"):
        continue_sound(0, Sound(1e6, ones))


@given(grids=st.integers(2, 400), seconds=st.floats(1.0, 30.0))
def test_a_window_never_holds_more_than_two_grids(grids, seconds):
    windows = [grid_position(grid, seconds, 25) // 50 for grid in range(grids)]
    assert max(np.bincount(windows)) <= 2
    assert [grid_position(grid, 1.0, 25) for grid in range(5)] == [0, 25, 50, 75, 100]
    assert [grid_position(grid, 1.0, 10) for grid in range(3)] == [0, 10, 20]
