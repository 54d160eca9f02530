"""The clips of the demo and the notebooks have what is asked about them, whatever the seed."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax.testbed.demo_clips import only_at_the_beginning, sample_stream
from omnizip_jax.testbed.synthetic_clips import Thing


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_begins_with_a_sound_that_does_not_come_again(seed):
    clip = sample_stream(seed)
    assert len(clip.frames) == 128 and len(clip.waveform) == 64 * 16_000
    own = [thing for thing in only_at_the_beginning(clip.things) if thing.sound]
    assert own and all(thing.slot < 10 for thing in own)
    for thing in own:
        again = [t for t in clip.things if thing.sound == t.sound or thing.colour == t.colour]
        assert all(t.slot < 10 for t in again)


def test_a_seed_makes_the_same_stream_and_another_one_another():
    one, same, other = sample_stream(4), sample_stream(4), sample_stream(5)
    assert one.things == same.things and np.array_equal(one.frames, same.frames)
    assert one.things != other.things


def test_what_comes_again_later_is_not_only_at_the_beginning():
    early, late = Thing(9, "red", "circle", "low"), Thing(10, "red", "circle", "low")
    silent = Thing(3, "blue", "circle")
    assert only_at_the_beginning((silent, early, late)) == (silent,)
    assert only_at_the_beginning((silent, early)) == (silent, early)
