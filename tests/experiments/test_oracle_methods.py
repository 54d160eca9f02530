"""The oracle keeps the tokens of objects; best-of-N samples differ by seed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.clip_inputs import clip_to_windows
from experiments.oracle_methods import BestSample, Oracle, Streamed, spread, with_objects
from omnizip_jax.compression import OmniZipConfig, Surprise
from omnizip_jax.testbed.synthetic_clips import make_clip
from omnizip_jax.types import AudioFeatures, EncodedWindow
from tests.compression import loops


def encoded(clip):
    """Windows of such a clip, without content."""
    windows = len(clip_to_windows(clip).mel_length)
    audio = AudioFeatures(
        tokens=np.zeros((1, windows, 50, 4), np.float32),
        token_mask=np.ones((1, windows, 50), bool),
        queries=np.zeros((1, windows, 100, 2, 4), np.float32),
        keys=np.zeros((1, windows, 100, 2, 4), np.float32),
        frame_mask=np.ones((1, windows, 100), bool),
    )
    video = np.zeros((1, windows, 2, 36, 4), np.float32)
    return EncodedWindow(audio=audio, video=video, video_mask=np.ones(video.shape[:-1], bool))


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.45])
def test_tokens_of_objects_come_first(keep):
    clip = make_clip(3, "validation")
    windows = jax.tree.map(lambda x: x[0], with_objects(encoded(clip), [clip]))
    method = Oracle(keep=keep)
    chosen = loops.select(method, windows)
    heard, seen = np.asarray(chosen.audio_keep), np.asarray(chosen.video_keep)
    counts = np.full(4, 50), np.full(4, 72)
    assert heard.sum() + seen.sum() == method.plan(*counts).total == round(keep * 488)
    sounds, shows = (
        clip.audio_objects.reshape(heard.shape) >= 0,
        clip.video_objects.reshape(seen.shape) >= 0,
    )
    objects, room = sounds.sum() + shows.sum(), round(keep * 488)
    of_things = heard[sounds].sum() + seen[shows].sum()
    assert of_things == min(objects, room)
    if room < objects:  # every thing gets about its share
        for index in range(len(clip.objects)):
            own = (
                clip.video_objects.reshape(seen.shape) == index,
                clip.audio_objects.reshape(heard.shape) == index,
            )
            size = own[0].sum() + own[1].sum()
            assert abs(seen[own[0]].sum() + heard[own[1]].sum() - size * room / objects) <= 2


def test_spread_is_even():
    mask = np.ones(12, bool)
    mask[[0, 5]] = False
    for count in range(11):
        kept = np.flatnonzero(np.asarray(spread(mask, np.int32(count)))[mask])
        assert len(kept) == count
        assert count < 2 or set(np.diff(kept)) <= {10 // count, -(-10 // count)}
    assert not np.asarray(spread(mask, np.int32(10)))[~mask].any()


def test_it_says_what_it_needs():
    with pytest.raises(ValueError, match="needs a share"):
        Oracle()
    windows = jax.tree.map(lambda x: x[0], encoded(make_clip(0)))
    with pytest.raises(ValueError, match="annotated objects"):
        loops.select(Oracle(keep=0.3), windows)


@pytest.mark.slow
def test_samples_depend_on_the_seed():
    """As many of each modality as Surprise keeps, each seed others, the same seed the same."""
    clip = make_clip(3, "validation")
    windows = jax.tree.map(lambda x: x[0], encoded(clip))
    windows = windows.replace(video=np.random.default_rng(0).normal(size=windows.video.shape))
    method = BestSample(keep=0.25)
    chosen = [loops.select(method, windows, jax.random.key(seed)) for seed in (0, 1, 0)]
    audio = [np.asarray(one.audio_keep) for one in chosen]
    video = [np.asarray(one.video_keep) for one in chosen]
    own = loops.select(Surprise(keep=0.25), windows)
    for keeps, kept in ((audio, own.audio_keep), (video, own.video_keep)):
        assert keeps[0].sum() == keeps[1].sum() == np.asarray(kept).sum()
        assert (keeps[0] != keeps[1]).any() and (keeps[0] == keeps[2]).all()


@pytest.mark.slow  # compiles four methods
def test_streamed_equals_the_steps_of_a_stream():
    windows = loops.encoded_clip(2)
    for method in (Surprise(keep=0.3), OmniZipConfig(keep=0.3)):
        whole = Streamed(method=method)
        chosen = loops.select(whole, windows)
        steps = loops.stream(method, windows)
        np.testing.assert_array_equal(chosen.audio_keep, steps.audio_keep)
        np.testing.assert_array_equal(chosen.video_keep, steps.video_keep)
        kept = chosen.audio_keep.sum() + chosen.video_keep.sum()
        assert kept <= whole.plan(*loops.sizes(windows)).total
