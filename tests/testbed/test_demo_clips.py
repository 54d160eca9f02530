"""Clips of the demo and the notebooks, for several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax.testbed.synthetic_clips import ClipObject, objects_only_in_opening, sample_stream


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_occurs_only_in_the_opening_of_a_stream(seed):
    clip = sample_stream(seed)
    assert len(clip.frames) == 128 and len(clip.waveform) == 64 * 16_000
    own = [obj for obj in objects_only_in_opening(clip.objects) if obj.sound]
    assert own and all(obj.second < 10 for obj in own)
    for obj in own:
        again = [t for t in clip.objects if obj.sound == t.sound or obj.colour == t.colour]
        assert all(t.second < 10 for t in again)


def test_a_seed_determines_the_stream():
    one, same, other = sample_stream(4), sample_stream(4), sample_stream(5)
    assert one.objects == same.objects and np.array_equal(one.frames, same.frames)
    assert one.objects != other.objects


def test_objects_that_recur_are_not_only_in_the_opening():
    early, late = ClipObject(9, "red", "circle", "low"), ClipObject(10, "red", "circle", "low")
    silent = ClipObject(3, "blue", "circle")
    assert objects_only_in_opening((silent, early, late)) == (silent,)
    assert objects_only_in_opening((silent, early)) == (silent, early)
