"""The log-mel spectrogram of a stream: pieces against the whole, and the running maximum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnizip_jax.media.clock import Sound
from omnizip_jax.media.live_sound import MelStream, largest_loudness
from omnizip_jax.media.sound import SAMPLE_RATE, clip_log_mel


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def stream(wave, maximum=None, block=1024, window=200):
    """All features, taken window by window, each as soon as it is complete."""
    mel, taken = MelStream(80), []
    for start in range(0, len(wave), block):
        mel.push(wave[start : start + block])
        while mel.frames >= (len(taken) + 1) * window:
            taken.append(mel.take((len(taken) + 1) * window, maximum))
    mel.finish()
    return np.concatenate([*taken, mel.take(mel.frames, maximum)], axis=1)


@pytest.mark.parametrize("samples", [1, 200, 201, 32_039, 32_040, 70_001])
@pytest.mark.parametrize("block", [160, 1024, 50_000])
def test_with_the_maximum_it_is_the_spectrogram_of_the_whole(samples, block):
    wave = noise(samples) * np.geomspace(1e-3, 1, samples, dtype=np.float32)
    blocks = [Sound(at / 16_000, wave[at : at + block]) for at in range(0, samples, block)]
    mel = stream(wave, largest_loudness(blocks, 80), block)
    np.testing.assert_allclose(mel, clip_log_mel(wave, 80), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=8))
def test_running_maximum_does_not_depend_on_the_pieces(cuts):
    wave = noise(40_000) * np.geomspace(1e-3, 1, 40_000, dtype=np.float32)
    mel, taken = MelStream(80), []
    for part in np.split(wave, sorted(cuts)):
        mel.push(part)
        while mel.frames >= 50 * (len(taken) + 1):
            taken.append(mel.take(50 * (len(taken) + 1)))
    mel.finish()
    taken.append(mel.take(mel.frames))
    expected = stream(wave, block=40_000, window=50)
    np.testing.assert_allclose(np.concatenate(taken, axis=1), expected, atol=1e-6)


def test_a_window_is_complete_two_and_a_half_milliseconds_after_its_end():
    mel = MelStream(80)
    mel.push(noise(32_039))
    assert mel.frames == 199
    mel.push(noise(1))
    assert mel.frames == 200


def steps(*decibels, seconds=4):
    """A tone at several levels, one after the other; between its harmonics all is at the floor."""
    levels = np.repeat(10 ** (np.array(decibels) / 20), seconds * SAMPLE_RATE)
    time = np.arange(len(levels)) / SAMPLE_RATE
    return (0.25 * np.sin(2 * np.pi * 1000 * time) * levels).astype(np.float32)


@pytest.mark.parametrize(
    ("wave", "deviation"),
    [
        (steps(0, 0), 1e-6),
        (steps(0, -40), 1e-6),  # loud, then quiet
        (steps(-3.5, 0), 3.5 / 40),
        (steps(-20, 0), 20 / 40),
        (steps(-200, 0), 0.789),  # after silence
    ],
)
def test_deviation_of_the_running_maximum(wave, deviation):
    """As docs/streaming.md says: a fortieth of the rise that is still to come, in decibels."""
    whole, live = clip_log_mel(wave, 80), stream(wave)
    assert np.abs(whole - live).max() == pytest.approx(deviation, rel=0.03, abs=1e-6)
    assert (live <= whole + 1e-6).all()  # the floor is too low at times, never too high
    np.testing.assert_allclose(live[:, 400:], whole[:, 400:], atol=1e-6)  # nothing more to come


def test_frames_left_out_are_gone_and_the_next_are_right():
    wave = noise(96_000)
    mel = MelStream(80)
    mel.push(wave[:20_000])
    assert mel.take(200).shape == (80, 124)
    mel.silence_until(32_000)
    assert mel.written == 32_000
    mel.push(wave[32_000:])
    mel.finish()
    assert mel.frames == 600
    rest = mel.take(600, 5.0)
    expected = wave.copy()
    expected[20_000:32_000] = 0
    assert rest.shape == (80, 400)
    np.testing.assert_allclose(rest, stream(expected, 5.0)[:, 200:], atol=1e-6)


def test_nothing():
    mel = MelStream(80)
    mel.finish()
    assert mel.frames == 0 and mel.take(200).shape == (80, 0)
    assert largest_loudness([], 80) == -np.inf
