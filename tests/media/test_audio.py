"""Audio: resampling, and the log-mel spectrogram of clips and of streams."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from experiments.clip_inputs import clip_log_mel
from omnizip_jax.media import load_clip
from omnizip_jax.media.audio import (
    HISTORY,
    HOP,
    LOOKAHEAD,
    SAMPLE_RATE,
    MelStream,
    Resampler,
    log_mel,
    log_power,
    max_log_power,
    mel_filters,
    mel_power,
)
from omnizip_jax.media.timeline import AudioChunk
from tests.media.make import tone, write


def swelling_noise(samples, seed=0):
    """Noise that swells over 60 dB, with a loud knock at the very end."""
    random = np.random.default_rng(seed)
    wave = random.standard_normal(samples) * np.geomspace(1e-4, 0.1, samples)
    wave[-1] = 0.9
    return wave.astype(np.float32)


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_are_slaneys(bins):
    expected = mel_filter_bank(201, bins, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(bins), expected.T, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 201, 16_000, 77_777])
def test_equals_the_feature_extractor(samples):
    wave = swelling_noise(samples)
    inputs = WhisperFeatureExtractor(feature_size=128)(
        wave, sampling_rate=16_000, padding="max_length", return_attention_mask=True
    )
    frames = int(inputs["attention_mask"][0].sum())
    mel = clip_log_mel(wave, 128)
    assert mel.shape == (128, frames) and mel.dtype == np.float32
    np.testing.assert_allclose(mel, inputs["input_features"][0][:, :frames], atol=1e-5)


def test_equals_the_feature_extractor_past_300_seconds():
    """Given more room than the released one has, and in its float64 path: with torch it works in
    float32, which puts it off by 3e-5 where sound this long is quietest."""
    samples = 305 * 16_000 + 5
    wave = swelling_noise(samples)
    padded = np.pad(wave, (0, 16_000))
    extractor = WhisperFeatureExtractor(feature_size=128)
    expected = extractor._np_extract_fbank_features(padded[None], "cpu")[0]
    frames = 30_501
    np.testing.assert_allclose(clip_log_mel(wave, 128), expected[:, :frames], atol=1e-6)


def test_blocks_with_their_neighbourhood_are_exact():
    """What a live stream does: the same power in pieces, the maximum handed in."""
    wave = swelling_noise(5 * 16_000)
    padded = np.concatenate([wave[HISTORY:0:-1], wave, np.zeros(500, np.float32)])
    whole = mel_power(padded[: HISTORY + 500 * HOP + LOOKAHEAD], 128)
    pieces = [
        mel_power(padded[start * HOP :][: HISTORY + count * HOP + LOOKAHEAD], 128)
        for start, count in ((0, 200), (200, 1), (201, 299))
    ]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    after = mel_power(padded[500 * HOP :][: HISTORY + HOP + LOOKAHEAD], 128)
    maximum = float(max(log_power(whole).max(), log_power(after).max()))
    np.testing.assert_array_equal(log_mel(whole, maximum), clip_log_mel(wave, 128))


def test_silence_and_nothing():
    assert clip_log_mel(np.zeros(0, np.float32), 128).shape == (128, 0)
    np.testing.assert_allclose(clip_log_mel(np.zeros(320, np.float32), 128), -1.5, rtol=1e-6)


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
    blocks = [AudioChunk(at / 16_000, wave[at : at + block]) for at in range(0, samples, block)]
    mel = stream(wave, max_log_power(blocks, 80), block)
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
    """As docs/sources.md says: a fortieth of the rise that is still to come, in decibels."""
    whole, live = clip_log_mel(wave, 80), stream(wave)
    assert np.abs(whole - live).max() == pytest.approx(deviation, rel=0.03, abs=1e-6)
    assert (live <= whole + 1e-6).all()  # the floor is too low at times, never too high
    np.testing.assert_allclose(live[:, 400:], whole[:, 400:], atol=1e-6)  # nothing more to come


def test_frames_left_out_are_gone_and_the_next_are_right():
    wave = noise(96_000)
    mel = MelStream(80)
    mel.push(wave[:20_000])
    assert mel.take(200).shape == (80, 124)
    mel.pad_silence(32_000)
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
    assert max_log_power([], 80) == -np.inf


@pytest.mark.parametrize("layout", ["stereo", "5.1", "7.1", "hexadecagonal", "22.2"])
def test_channels_are_averaged_whatever_their_number(layout):
    channels = av.AudioLayout(layout).nb_channels
    samples = np.random.default_rng(0).normal(0, 0.1, (4_000, channels)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", layout)
    frame.sample_rate, frame.pts = 16_000, 0
    resampler = Resampler()
    sounds = [*resampler.push(frame), *resampler.finish()]
    mono = np.concatenate([sound.samples for sound in sounds])
    np.testing.assert_allclose(mono, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("kind", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_a_file_with_eight_channels(tmp_path, kind, codec):
    sound = tone(2.0, channels=8) * np.arange(1, 9, dtype=np.float32)[:, None] / 8
    path = tmp_path / f"a.{kind}"
    if codec == "flac":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("flac", rate=16_000, layout="7.1")
            integers = np.round(sound * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(integers.T.reshape(1, -1), "s16", "7.1")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        write(path, sound=sound, layout="7.1", audio_codec=codec)
    ours = load_clip(path).windows.mel
    expected = load_clip((None, 1, sound.mean(axis=0), 16_000)).windows.mel
    np.testing.assert_allclose(ours.max(1), expected.max(1), atol=0.01)
