"""Audio times of a file: real gaps, and unreliable timestamps."""

from __future__ import annotations

import warnings

import av
import numpy as np
import pytest

from experiments.clip_inputs import clip_log_mel
from omnizip_jax.media import load_clip, windows
from omnizip_jax.media.audio import Resampler
from omnizip_jax.media.timeline import AudioChunk, TimestampRepair
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import tone, write

SMALL = WindowSpec(grid_slots=12)
BLOCK = 320  # samples: 20 ms


def steady(starts):
    """What becomes of the start times of blocks of 20 ms."""
    clock = TimestampRepair()
    block = np.ones(BLOCK, np.float32)
    sounds = [made for start in starts for made in clock.push(AudioChunk(start, block))]
    return np.array([sound.start for sound in [*sounds, *clock.finish()]])


def in_turn(count, start=0.0):
    return start + 0.02 * np.arange(count)


def test_continuous_audio_is_unchanged():
    np.testing.assert_allclose(steady(in_turn(200)), in_turn(200), atol=1e-9)
    np.testing.assert_allclose(steady(in_turn(200, 0.009)), in_turn(200, 0.009), atol=1e-9)
    np.testing.assert_allclose(steady(in_turn(200, -0.02)), in_turn(200, -0.02), atol=1e-9)


def test_gaps_and_overlaps_that_last_are_real():
    starts = np.concatenate([in_turn(100), in_turn(60, 3.5), in_turn(60, 4.2), in_turn(2, 9.0)])
    np.testing.assert_allclose(steady(starts), starts, atol=1e-9)


def test_a_pause_between_every_block_is_real():
    starts = 0.4 * np.arange(100)
    np.testing.assert_allclose(steady(starts), starts, atol=1e-9)


def test_timestamps_that_return_are_ignored():
    starts = in_turn(300)
    starts[40:60] += 0.6
    starts[100:130] -= 3.0
    starts[200::3] += 0.2
    starts[-1] = in_turn(300)[-1]
    np.testing.assert_allclose(steady(starts), in_turn(300), atol=1e-9)


# An Ogg file with empty packets, which have a duration by its rules


def vorbis(path, sound):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("vorbis", rate=48_000, layout="stereo")
        stream.options = {"strict": "experimental"}
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", "stereo")
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_empty_packets(data):
    """The same packets, eight to a page, each followed by 24 empty ones."""
    at, made, packets, whole = 0, [], [], b""
    while at < len(data):
        count = data[at + 26]
        sizes, place = data[at + 27 : at + 27 + count], at + 27 + count
        head, page = data[at : at + 26], data[at : place + sum(sizes)]
        at += len(page)
        if not any(head[6:14]):  # no position yet: a page of headers
            made.append(page)
            continue
        for size in sizes:
            whole += data[place : place + size]
            place += size
            if size < 255:
                packets, whole = [*packets, whole], b""
    for first in range(0, len(packets), 8):
        some = packets[first : first + 8]
        position = 1024 * (first + len(some) - 1)  # samples so far
        page = bytearray(b"OggS\0\0" + position.to_bytes(8, "little") + head[14:18])
        page += len(made).to_bytes(4, "little") + bytes(4)
        sizes = [[255] * (len(p) // 255) + [len(p) % 255] + [0] * 24 for p in some]
        page += bytes([sum(map(len, sizes))]) + b"".join(map(bytes, sizes)) + b"".join(some)
        page[22:26] = checksum(page).to_bytes(4, "little")
        made.append(page)
    return b"".join(made)


def checksum(page):
    """CRC-32 of Ogg: polynomial 0x04c11db7, not reflected."""
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
        table.append(value)
    total = 0
    for byte in page:
        total = (total << 8 ^ table[total >> 24 ^ byte]) & 0xFFFFFFFF
    return total


def in_sequence(path):
    """All samples that decode, one after the other, whatever the timestamps."""
    resampler, samples = Resampler(), []
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            for frame in packet.decode() if packet.size else ():
                frame.pts = None
                samples += [sound.samples for sound in resampler.push(frame)]
    samples += [sound.samples for sound in resampler.finish()]
    return np.concatenate(samples)


def test_empty_packets_and_their_timestamps_harm_nothing(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 6 * 48_000)).astype(np.float32)
    sound = tone(6.0, 48_000, channels=2) * np.linspace(0, 1, 6 * 48_000, dtype=np.float32) + noise
    good = vorbis(tmp_path / "good.ogg", sound)
    path = tmp_path / "a.ogg"
    path.write_bytes(with_empty_packets(good.read_bytes()))
    with av.open(str(path)) as container:  # it is what it says
        packets = [p for p in container.demux(audio=0) if p.pts is not None]
    jumps = np.diff([float(p.pts * p.time_base) for p in packets if p.size])
    assert sum(p.size == 0 for p in packets) > 500 and np.abs(jumps).max() > 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip(path, SMALL)
        given = list(windows(path, SMALL))
    expected = clip_log_mel(in_sequence(path), 128)
    ours = np.concatenate(list(clip.windows.mel), axis=1)
    length = min(ours.shape[1], expected.shape[1])
    assert length >= 595
    np.testing.assert_allclose(ours[:, : length - 5], expected[:, : length - 5], atol=1e-5)
    live = np.concatenate([window.mel for window in given], axis=1)
    np.testing.assert_allclose(live, ours, atol=1e-5)


@pytest.mark.parametrize("late", [0.009, 0.03, 0.2])
def test_the_first_sample_lies_at_its_time(tmp_path, late):
    """The video begins the clip, the audio follows 9 ms later: below what counts as a gap."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 32_000)).astype(np.float32)
    frames = np.zeros((50, 48, 64, 3), np.uint8)
    path = write(tmp_path / "a.mkv", frames, sound=sound, starts=(late,), audio_codec="pcm_f32le")
    silence = np.zeros(round(late * 16_000), np.float32)
    expected = clip_log_mel(np.concatenate([silence, sound[0]]), 128)[:, :200]
    for given in (load_clip(path, SMALL).windows.mel[0], next(windows(path, SMALL)).mel):
        np.testing.assert_allclose(given, expected, atol=1e-4)


def test_audio_in_packets_of_more_than_a_second(tmp_path):
    path = tmp_path / "a.mkv"
    samples = np.round(tone(4.0) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0, 32_000):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 32_000], "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert load_clip(path, SMALL).duration == 4.0
