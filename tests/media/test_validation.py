"""Windows that users made: the same message for a window of a stream and of a clip."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omnizip_jax import generate
from omnizip_jax.media import check_clip, check_windows
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
