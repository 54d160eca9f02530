"""Synthetic clips: reproducible, different in every split, and consistent with their content."""

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
    default_windows,
    draw_objects,
    make_clip,
    random_generator,
    render,
)


def test_a_seed_gives_the_same_clip():
    one, two = make_clip(5, "train"), make_clip(5, "train")
    assert one.objects == two.objects
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


# SHA-256 of frames, labels and objects of some clips, and the sum of absolute samples; recorded
# when the class of objects had another name. Published measurements are about exactly these clips.
FIXED = {"easy": ("a27cb746acb0d8b5", 46737.974), "hard": ("f6b4aba8a3499b39", 26055.733)}


@pytest.mark.parametrize("name", FIXED)
def test_clips_of_known_seeds_do_not_change(name):
    digest, loud = hashlib.sha256(), 0.0
    for split, windows in itertools.product(SPLITS, (1, 4, 7)):
        clip = make_clip(windows, split, DIFFICULTIES[name], windows)
        for array in (
            clip.frames,
            clip.video_objects.astype(np.int8),
            clip.audio_objects.astype(np.int8),
        ):
            digest.update(array.tobytes())
        digest.update(repr(clip.objects).replace("ClipObject(second", "Thing(slot").encode())
        loud += float(np.abs(clip.waveform).sum())
    assert (digest.hexdigest()[:16], loud) == (FIXED[name][0], pytest.approx(FIXED[name][1]))


@pytest.mark.parametrize("name", ["easy", "hard", "moving"])
def test_clips_match_their_difficulty(name):
    difficulty = DIFFICULTIES[name]
    for seed in range(12):
        clip = make_clip(seed, "validation", difficulty)
        silent = len(clip.objects) - len(clip.events)
        assert difficulty.events[0] <= len(clip.events) <= difficulty.events[1]
        assert difficulty.silent[0] <= silent <= difficulty.silent[1]
        assert len({obj.colour for obj in clip.objects}) == len(clip.objects)
        assert len({event.sound for event in clip.events}) == len(clip.events)
        assert len({event.second // 2 for event in clip.events}) <= 2


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_objects_are_visible_only_in_their_second(name):
    clip = make_clip(3, "validation", DIFFICULTIES[name], 4)
    for index, obj in enumerate(clip.objects):
        seconds, _ = np.nonzero(clip.video_objects == index)
        assert set(seconds) == {obj.second}
        if [other.colour for other in clip.objects].count(obj.colour) > 1:
            continue  # its colour is visible in other seconds too
        near = np.abs(clip.frames - np.array(COLOURS[obj.colour], int)).max(-1) <= 20
        share = near.reshape(len(clip.video_objects), -1).mean(1)
        assert share.argmax() == obj.second and share[obj.second] > 0.002


def test_objects_recur_in_long_clips():
    long, recurring = DIFFICULTIES["long"], 0
    for seed in range(12):
        windows = default_windows(seed, long)
        clip = make_clip(seed, "validation", long, min(windows, 30))
        seconds = [obj.second for obj in clip.objects]
        assert len(set(seconds)) == len(seconds) <= len(clip.video_objects) // 2
        cast = {(obj.colour, obj.shape, obj.sound, obj.long) for obj in clip.objects}
        assert len({colour for colour, *_ in cast}) == len(cast)
        sounds = [sound for _, _, sound, _ in cast if sound]
        assert len(set(sounds)) == len(sounds) and 4 <= len(sounds) <= 6
        often = collections.Counter(obj.colour for obj in clip.objects)
        assert max(often.values()) <= 6
        recurring += max(often.values()) > 1
    assert recurring >= 9
    assert {default_windows(seed, long) for seed in range(4)} == set(long.windows)


def test_long_clips_have_objects_in_every_third():
    long, thirds = DIFFICULTIES["long"], np.zeros(3)
    for seed in range(60):
        objects = draw_objects(np.random.default_rng(seed), long, 60)
        thirds += np.bincount([obj.second // 40 for obj in objects], minlength=3)
    assert thirds.min() > 0.27 * thirds.sum()


@pytest.mark.parametrize("name", ["moving", "long"])
def test_backgrounds_have_no_colour_of_an_object(name):
    """Nearly no pixel of a clip without objects has the colour of an object."""
    difficulty = DIFFICULTIES[name]
    empty = render((), np.random.default_rng(0), difficulty, 10)
    for colour in COLOURS.values():
        near = np.abs(empty.frames - np.array(colour, int)).max(-1) <= 20
        assert near.mean() < 2e-3


def test_backgrounds_move_and_sound():
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


def test_sounds_are_audible_only_in_their_second():
    clip = make_clip(3, "validation")
    loudness = np.square(clip.waveform.reshape(-1, SAMPLE_RATE)).mean(1)
    for second, power in enumerate(loudness):
        index = [i for i, obj in enumerate(clip.objects) if obj.sound and obj.second == second]
        assert (power > 1e-3) == bool(index)
        assert set(np.unique(clip.audio_objects[second])) <= {-1, *index}
    for index, obj in enumerate(clip.objects):
        if obj.sound:
            assert ((clip.audio_objects == index).sum() > 15) == obj.long


def test_an_mp4_file_has_the_content_of_the_arrays(tmp_path):
    clip = make_clip(1, "validation")
    arrays = load_clip(clip.arrays, SPEC).windows
    file = load_clip(clip.write(tmp_path / "clip.mp4"), SPEC).windows
    for window in range(4):
        ours, theirs = (window_frames(_window(w, window)).astype(int) for w in (arrays, file))
        np.testing.assert_array_equal(ours, clip.frames[4 * window : 4 * window + 4])
        assert np.abs(ours - theirs).mean() < 4
        heard = clip.audio_objects[2 * window : 2 * window + 2].ravel() >= 0
        loud = np.repeat(heard, 4)
        differs = np.abs(arrays.mel[window] - file.mel[window])[:100, loud]
        assert not heard.any() or differs.mean() < 0.1


def _window(windows, index):
    return windows.replace(
        **{name: getattr(windows, name)[index] for name in ("patches", "grid_size", "grid_mask")}
    )


def test_every_difficulty_can_be_drawn_without_recurrence():
    """Long clips draw more objects than there are colours; without recurrence fewer are drawn."""
    for difficulty in DIFFICULTIES.values():
        for seed in range(200):
            once = dataclasses.replace(difficulty, max_occurrences=1)
            objects = draw_objects(np.random.default_rng(seed), once, 1 + seed % 20)
            assert len({obj.colour for obj in objects}) == len(objects)
