"""Clips: the same from the same seed, different across splits, and as their description says."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from omnizip_jax.media import load_clip, window_frames
from omnizip_jax.testbed.synthetic_clips import (
    COLOURS,
    DIFFICULTIES,
    SAMPLE_RATE,
    SPEC,
    SPLITS,
    clip_windows,
    draw_things,
    make_clip,
    random_generator,
    render,
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


# SHA-256 of pictures, labels and things of some clips, and how loud they are: what was measured on
# them must stay true.
FIXED = {"easy": ("a27cb746acb0d8b5", 46737.974), "hard": ("f6b4aba8a3499b39", 26055.733)}


@pytest.mark.parametrize("name", FIXED)
def test_clips_of_known_seeds_never_change(name):
    digest, loud = hashlib.sha256(), 0.0
    for split, windows in itertools.product(SPLITS, (1, 4, 7)):
        clip = make_clip(windows, split, DIFFICULTIES[name], windows)
        for array in (clip.frames, clip.cells.astype(np.int8), clip.active.astype(np.int8)):
            digest.update(array.tobytes())
        digest.update(repr(clip.things).encode())
        loud += float(np.abs(clip.waveform).sum())
    assert (digest.hexdigest()[:16], loud) == (FIXED[name][0], pytest.approx(FIXED[name][1]))


@pytest.mark.parametrize("name", ["easy", "hard", "moving"])
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
    clip = make_clip(3, "validation", DIFFICULTIES[name], 4)
    for index, thing in enumerate(clip.things):
        slots, _ = np.nonzero(clip.cells == index)
        assert set(slots) == {thing.slot}
        if [other.colour for other in clip.things].count(thing.colour) > 1:
            continue  # its colour is seen in other seconds too
        near = np.abs(clip.frames - np.array(COLOURS[thing.colour], int)).max(-1) <= 20
        share = near.reshape(len(clip.cells), -1).mean(1)
        assert share.argmax() == thing.slot and share[thing.slot] > 0.002


def test_the_same_things_come_again_in_long_clips():
    long, recurring = DIFFICULTIES["long"], 0
    for seed in range(12):
        windows = clip_windows(seed, long)
        clip = make_clip(seed, "validation", long, min(windows, 30))
        slots = [thing.slot for thing in clip.things]
        assert len(set(slots)) == len(slots) <= len(clip.cells) // 2
        cast = {(thing.colour, thing.shape, thing.sound, thing.long) for thing in clip.things}
        assert len({colour for colour, *_ in cast}) == len(cast)
        sounds = [sound for _, _, sound, _ in cast if sound]
        assert len(set(sounds)) == len(sounds) and 4 <= len(sounds) <= 6
        often = collections.Counter(thing.colour for thing in clip.things)
        assert max(often.values()) <= 6
        recurring += max(often.values()) > 1
    assert recurring >= 9
    assert {clip_windows(seed, long) for seed in range(4)} == set(long.windows)


def test_long_clips_have_events_all_over():
    long, thirds = DIFFICULTIES["long"], np.zeros(3)
    for seed in range(60):
        things = draw_things(np.random.default_rng(seed), long, 60)
        thirds += np.bincount([thing.slot // 40 for thing in things], minlength=3)
    assert thirds.min() > 0.27 * thirds.sum()


@pytest.mark.parametrize("name", ["moving", "long"])
def test_what_moves_besides_has_no_colour_that_is_asked_about(name):
    """A scene without things has (nearly) no pixel of a thing's colour."""
    look = DIFFICULTIES[name]
    empty = render((), np.random.default_rng(0), look, 10)
    for colour in COLOURS.values():
        near = np.abs(empty.frames - np.array(colour, int)).max(-1) <= 20
        assert near.mean() < 2e-3


def test_scenes_move_and_sound_where_nothing_happens():
    still, moving, long = (
        render((), np.random.default_rng(1), DIFFICULTIES[name], 10)
        for name in ("easy", "moving", "long")
    )

    def changing(clip):
        return (np.abs(np.diff(clip.frames.astype(int), axis=0)).max(-1) > 10).mean()

    assert changing(still) == 0 < 0.1 < changing(long) < changing(moving)
    assert changing(moving) > 0.3
    loud = [np.sqrt(np.square(clip.waveform).mean()) for clip in (still, moving, long)]
    assert min(loud[1:]) > 3 * loud[0]


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


def test_any_look_can_be_drawn_without_recurring():
    """Long clips have more to happen than there are colours; a shorter lesson draws fewer."""
    for look in DIFFICULTIES.values():
        for seed in range(200):
            once = dataclasses.replace(look, again=1)
            things = draw_things(np.random.default_rng(seed), once, 1 + seed % 20)
            assert len({thing.colour for thing in things}) == len(things)
