"""Containers whose duration or start says something else than their tracks, and joined files."""

from __future__ import annotations

import functools
import itertools
import os
import struct
import threading
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from omnizip_jax.media import load_clip, window_frames, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, served, tone, write

SMALL = WindowSpec(grid_slots=12)
LEVELS = 20 + np.arange(60)  # of 6 s
load = functools.partial(load_clip, spec=SMALL)


def clip(path, **options):
    return write(path, grey(LEVELS), fps=10, sound=tone(6.0), **options)


def late_subtitle(folder):
    """Remuxed with a line of text that ends after three hours."""
    path = folder / "a.mkv"
    with av.open(str(clip(folder / "plain.mkv"))) as source, av.open(str(path), "w") as target:
        copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
        text = target.add_mux_stream("subrip")
        text.time_base = Fraction(1, 1000)
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
        packet = av.Packet(b"The end")
        packet.stream, packet.time_base = text, Fraction(1, 1000)
        packet.pts = packet.dts = 5_000
        packet.duration = 10_800_000
        target.mux(packet)
    return path


def wrong_duration(folder, tagged=True):
    """Three hours in the header of the container; ``tagged``: the tracks state theirs."""
    path = clip(folder / "a.mkv")
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3
    data = data[:at] + struct.pack(">d", 10_800_000.0) + data[at + 8 :]
    path.write_bytes(data if tagged else data.replace(b"DURATION", b"SOMETHIN"))
    return path


def one_hour(folder):
    """The clock begins at one hour."""
    times, options = 3600 + np.arange(60) / 10, {"avoid_negative_ts": "disabled"}
    path, sound = folder / "a.mkv", tone(6.0)
    return write(
        path, grey(LEVELS), times, 10, sound=sound, starts=(3600.0,), container_options=options
    )


def fragmented(folder, flags="frag_keyframe+empty_moov"):
    options = {"container_options": {"movflags": flags}, "options": {"g": "10", "bf": "0"}}
    return clip(folder / "a.mp4", audio_codec="aac", **options)


def raw(folder):
    return write(folder / "a.h264", grey(np.repeat(LEVELS, 5)[::2]), fps=25)  # 150 frames


def through_a_pipe(path):
    pipe = path.with_suffix(".pipe")
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True).start()
    return pipe


FILES = {
    "late subtitle": late_subtitle,
    "wrong duration": wrong_duration,
    "wrong duration, no tags": functools.partial(wrong_duration, tagged=False),
    "one hour": one_hour,
    "fragmented": fragmented,
    "first fragment in the header": functools.partial(fragmented, flags="frag_keyframe"),
    "raw": raw,
    "pipe": lambda folder: through_a_pipe(clip(folder / "a.mkv")),
    "fragments through a pipe": lambda folder: through_a_pipe(fragmented(folder)),
    "first fragment through a pipe": lambda folder: through_a_pipe(
        fragmented(folder, "frag_keyframe")
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_the_tracks_decide_the_length(tmp_path, case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spread = load(FILES[case](tmp_path), max_frames=6, max_windows=4)
        assert spread.duration == pytest.approx(6.0, abs=0.15)
        levels = window_frames(spread.windows).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, LEVELS[5::10], atol=3)
        if "pipe" not in case:
            source = next(tmp_path.glob("a.*"))
            assert load(source, max_windows=3).windows.grid_mask[:3].all()
            assert len(list(windows(source, SMALL))) in (3, 4)  # AAC ends later
            with pytest.raises(ValueError, match="too long for 2 windows"):
                load(source, max_windows=2)


@pytest.mark.parametrize("case", ["wrong duration", "first fragment in the header", "raw"])
def test_the_tracks_of_a_url_decide_its_length(tmp_path, case):
    name = FILES[case](tmp_path).name
    with served(tmp_path) as url:
        spread = load(f"{url}/{name}", max_frames=6, max_windows=4)
    levels = window_frames(spread.windows).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, LEVELS[5::10], atol=3)


@pytest.mark.parametrize(("kind", "codec"), [("mp3", "libmp3lame"), ("aac", "aac")])
def test_a_length_that_is_guessed_from_the_first_bit_rate(tmp_path, kind, codec):
    """Silence, then noise, at a variable rate, and a header without a length."""
    sound = np.random.default_rng(0).normal(0, 0.3, (1, 20 * 44_100)).astype(np.float32)
    sound[:, : 16 * 44_100] = 0
    path = tmp_path / f"a.{kind}"
    with av.open(str(path), "w", options={"write_xing": "0"} if kind == "mp3" else {}) as file:
        stream = file.add_stream(codec, rate=44_100, layout="mono")
        if kind == "mp3":
            stream.options = {"flags": "+qscale", "global_quality": "0"}
        else:
            stream.bit_rate = 200_000
        for at in range(0, sound.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(sound[:, at : at + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = 44_100, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with av.open(str(path)) as file:
        assert file.duration > 30e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path, max_windows=12).duration == pytest.approx(20.0, abs=0.2)
        assert len(list(windows(path, SMALL))) in (10, 11)
    with pytest.raises(ValueError, match="too long for 8 windows"):
        load(path, max_windows=8)


# Clocks that restart


JOINED = {  # suffix, audio codec, options of a part's container
    "transport streams": ("ts", "aac", lambda part: {}),
    "later clocks": ("ts", "aac", lambda part: {"output_ts_offset": str(1000 * part)}),
    "earlier clocks": ("ts", "aac", lambda part: {"output_ts_offset": str(3000 - 1000 * part)}),
    "other PIDs": ("ts", "aac", lambda part: {"mpegts_start_pid": str(256 * (part + 1))}),
    "program streams": ("mpg", "mp2", lambda part: {}),
    "Matroska": ("mkv", "pcm_s16le", lambda part: {}),  # of which FFmpeg reads no third part
}


@pytest.mark.parametrize("case", JOINED)
def test_joined_files_are_read_one_after_the_other(tmp_path, case):
    kind, codec, container_options = JOINED[case]
    parts, data = 2 if kind == "mkv" else 3, b""
    for part in range(parts):
        path = tmp_path / f"{part}.{kind}"
        sound = tone(3.0, 48_000, hertz=(500, 1000, 2000)[part])
        fps = 25 if kind == "mpg" else 10  # MPEG-2 has no 10
        frames = grey(30 + 60 * part + np.arange(3 * fps) * 10 // fps)
        options = {"options": {"g": "10"}, "container_options": container_options(part)}
        options |= {"video_codec": "mpeg2video"} if kind == "mpg" else {}
        write(path, frames, fps=fps, sound=sound, rate=48_000, audio_codec=codec, **options)
        data += path.read_bytes()
    path = tmp_path / f"joined{path.suffix}"
    path.write_bytes(data)
    joined = load(path)
    assert joined.duration == pytest.approx(3.0 * parts, abs=0.3)
    levels = window_frames(joined.windows).mean(axis=(1, 2, 3))
    assert len(levels) == 6 * parts
    part, time = np.divmod(0.25 + 0.5 * np.arange(6 * parts), 3)
    np.testing.assert_allclose(levels, 30 + 60 * part + 10 * time, atol=6)
    bands = np.concatenate(list(joined.windows.mel), axis=1).argmax(0)
    bands = [bands[start : start + 250] for start in range(25, 300 * parts, 300)]
    assert all(before.max() < after.min() for before, after in itertools.pairwise(bands))
    given = [window.grid_mask for window in windows(path, SMALL)]
    np.testing.assert_array_equal(given, joined.windows.grid_mask)
    spread = window_frames(load(path, max_frames=2 * parts).windows).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(spread, [37, 52, 97, 112, 157, 172][: 2 * parts], atol=6)


def test_an_edit_list_is_no_restart(tmp_path):
    """2 s from the beginning and 2 s from the middle of a group: FFmpeg reads back to its start."""
    frames = grey(20 + np.arange(200))
    path = write(tmp_path / "a.mp4", frames, fps=20, options={"g": "40"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") - 4
    ((_, first, rate),) = struct.iter_unpack(">IiI", data[at + 16 : at + 28])
    (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    second = (2000, first + round(5.55 * scale), rate)
    data[at : at + 28] = struct.pack(">I4sII", 40, b"elst", 0, 2) + struct.pack(
        ">IiIIiI", 2000, first, rate, *second
    )
    for box in (b"edts", b"trak", b"moov"):
        start = data.index(box) - 4
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + 12)
    path.write_bytes(data)
    clip = load(path, max_frames=8)
    assert clip.duration == pytest.approx(4.0, abs=0.06) and clip.seconds_per_grid == 1.0
    levels = window_frames(clip.windows).mean(axis=(1, 2, 3))
    middles = 20 * (0.25 + 0.5 * np.arange(4))
    np.testing.assert_allclose(levels, 20 + np.concatenate([middles, 111 + middles]), atol=3)
