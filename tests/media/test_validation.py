"""Windows that users made: the same message for a window of a stream and of a clip."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from omnizip_jax import generate
from omnizip_jax.media import check_clip, check_windows, load_clip
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)

BAD = {
    "a length below zero": ({"mel_length": -5}, "mel_length 0 to 200, got .* and -5"),
    "a length beyond the frames": ({"mel_length": 201}, "and 201"),
    "no rows": ({"grid_size": [0, 1]}, "at least 1 x 1 .* got 0 x 1"),
    "too many cells": ({"grid_size": [99, 99]}, "99 x 99 exceeds"),
    "NaN": ({"mel": np.nan}, "NaN or infinite"),
}


def filled(windows, changes):
    """The windows with some leaves of the same value everywhere."""
    leaves = {
        name: np.broadcast_to(np.asarray(value, np.asarray(getattr(windows, name)).dtype), shape)
        for name, value in changes.items()
        for shape in [np.shape(getattr(windows, name))]
    }
    return windows.replace(**leaves)


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_invalid_windows(changes, message, params, random_windows):
    with pytest.raises(ValueError, match=message):
        check_windows(filled(Window.empty(SPEC), changes), SPEC)
    clip = clip_of(random_windows([2, 2], [200, 200]))
    bad = dataclasses.replace(clip, windows=filled(clip.windows, changes))
    with pytest.raises(ValueError, match=message):
        generate(params, bad, "What?")


def test_shapes_of_clips(random_windows, unchecked):
    clip = clip_of(random_windows([2, 2], [200, 200]))
    check_clip(clip)
    for windows, message in (
        (clip.windows.replace(mel=clip.windows.mel[:1]), "window.mel should be .*load_clip"),
        (clip.windows.replace(mel_length=np.zeros(0, int)), "needs a window"),
        (None, "needs a window"),
    ):
        with pytest.raises(ValueError, match=message):
            check_clip(dataclasses.replace(clip, windows=windows))


@pytest.mark.parametrize("times", [[-40, 0], [0, 10_000], [0, 2**31 - 1], [25, 0], [0, 60], [9, 9]])
def test_times_of_grids_outside_their_window(times, random_windows):
    windows = random_windows([2], [200])
    bad = windows.replace(grid_time=np.array([times], np.int32))
    with pytest.raises(ValueError, match=r"grid_time must ascend from 0 to 49.*got \["):
        check_windows(bad, SPEC, 1)
    check_windows(bad.replace(grid_mask=np.zeros_like(bad.grid_mask)), SPEC, 1)  # of no grids


def test_windows_of_another_shape_name_the_spec():
    with pytest.raises(ValueError, match=r"with the spec of the checkpoint, params\.config"):
        check_windows(Window.empty(WindowSpec()), SPEC)


def test_options_for_a_clip_are_those_of_its_source():
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (16, 48, 64, 3), np.uint8)
    source = (frames, 2.0, 0.1 * random.standard_normal(5 * 16_000).astype(np.float32), 16_000)
    clip = load_clip(source, SPEC)
    assert clip.select() is clip
    silent, expected = clip.select(use_audio=False), load_clip(source, SPEC, use_audio=False)
    assert not silent.has_audio
    jax.tree.map(np.testing.assert_array_equal, silent.windows, expected.windows)
    blind, expected = clip.select(use_video=False), load_clip(source, SPEC, use_video=False)
    assert not blind.has_video and len(blind.windows.mel) == len(expected.windows.mel) == 3
    np.testing.assert_array_equal(blind.windows.mel, expected.windows.mel)
    few, expected = clip.select(5), load_clip(source, SPEC, max_frames=5)
    assert few.seconds_per_grid == expected.seconds_per_grid == 4.0
    jax.tree.map(np.testing.assert_array_equal, few.windows, expected.windows)
    with pytest.raises(ValueError, match="leave nothing of this clip"):
        silent.select(use_video=False)


def test_a_clip_of_another_shape(params):
    clip = load_clip((np.zeros((4, 48, 64, 3), np.uint8), 2.0, None, 0), SPEC)
    with pytest.raises(ValueError, match="load it with that spec, or leave spec out"):
        generate(params, clip, "What?", spec=WindowSpec(grid_slots=20))
    for change in ({"positions_per_second": 50}, {"patch": 7}, {"merge": 1}):
        spec = dataclasses.replace(SPEC, **change)
        other = load_clip((np.zeros((4, 48, 64, 3), np.uint8), 2.0, None, 0), spec)
        with pytest.raises(ValueError, match="the model's encoders have"):
            generate(params, other, "What?")
