"""Clips: the same from the same seed, different across splits, and as their description says."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax.media import load_clip, window_frames
from omnizip_jax.testbed.clips import (
    COLOURS,
    DIFFICULTIES,
    SAMPLE_RATE,
    SPEC,
    SPLITS,
    make_clip,
    random_generator,
)


def test_a_seed_always_gives_the_same_clip():
    one, two = make_clip(5, "train"), make_clip(5, "train")
    assert one.things == two.things
    np.testing.assert_array_equal(one.frames, two.frames)
    np.testing.assert_array_equal(one.waveform, two.waveform)


def test_no_two_splits_and_no_two_seeds_share_a_clip():
    seeds = [0, 1, 2, 10**9, 10**9 + 1]
    draws = {random_generator(split, seed).bytes(16) for split in SPLITS for seed in seeds}
    assert len(draws) == len(SPLITS) * len(seeds)


def test_an_unknown_split_or_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="expected a split of train"):
        make_clip(0, "training")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seed from 0"):
        make_clip(-1)


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_clips_keep_to_their_difficulty(name):
    difficulty = DIFFICULTIES[name]
    for seed in range(12):
        clip = make_clip(seed, "validation", difficulty)
        silent = len(clip.things) - len(clip.events)
        assert difficulty.events[0] <= len(clip.events) <= difficulty.events[1]
        assert difficulty.silent[0] <= silent <= difficulty.silent[1]
        assert len({thing.colour for thing in clip.things}) == len(clip.things)
        assert len({event.sound for event in clip.events}) == len(clip.events)
        assert len({event.slot // 2 for event in clip.events}) <= 2  # the rest is quiet


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_every_thing_is_seen_in_its_own_second_alone(name):
    clip = make_clip(3, "validation", DIFFICULTIES[name])
    for index, thing in enumerate(clip.things):
        slots, _ = np.nonzero(clip.cells == index)
        assert set(slots) == {thing.slot}
        near = np.abs(clip.frames - np.array(COLOURS[thing.colour], int)).max(-1) <= 20
        share = near.reshape(len(clip.cells), -1).mean(1)
        assert share.argmax() == thing.slot and share[thing.slot] > 0.002


def test_every_event_is_heard_in_its_own_second_alone():
    clip = make_clip(3, "validation")
    loudness = np.square(clip.waveform.reshape(-1, SAMPLE_RATE)).mean(1)
    for slot, power in enumerate(loudness):
        index = [i for i, thing in enumerate(clip.things) if thing.sound and thing.slot == slot]
        assert (power > 1e-3) == bool(index)
        assert set(np.unique(clip.active[slot])) <= {-1, *index}
    for index, thing in enumerate(clip.things):
        if thing.sound:
            assert ((clip.active == index).sum() > 15) == thing.long


def test_a_written_clip_reads_as_its_arrays_do(tmp_path):
    clip = make_clip(1, "validation")
    arrays = load_clip(clip.arrays, SPEC).windows
    file = load_clip(clip.write(tmp_path / "clip.mp4"), SPEC).windows
    for window in range(4):
        ours, theirs = (window_frames(_window(w, window)).astype(int) for w in (arrays, file))
        np.testing.assert_array_equal(ours, clip.frames[4 * window : 4 * window + 4])
        assert np.abs(ours - theirs).mean() < 4
        heard = clip.active[2 * window : 2 * window + 2].ravel() >= 0
        loud = np.repeat(heard, 4)
        differs = np.abs(arrays.mel[window] - file.mel[window])[:100, loud]
        assert not heard.any() or differs.mean() < 0.1


def _window(windows, index):
    return windows.replace(
        **{name: getattr(windows, name)[index] for name in ("patches", "grid_size", "grid_mask")}
    )
