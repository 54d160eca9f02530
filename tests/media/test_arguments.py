"""Invalid arguments are refused with a message."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from omnizip_jax.media import PushSource, load_clip, windows
from omnizip_jax.media.container import MediaFile
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone, write

SMALL = WindowSpec(grid_slots=12)
WAYS = {
    "load_clip": lambda source, **options: load_clip(source, SMALL, **options),
    "windows": lambda source, **options: list(windows(source, SMALL, **options)),
}


@pytest.mark.parametrize("max_frames", [2.5, 1, -4, "8", float("nan")])
def test_max_frames(max_frames):
    with pytest.raises(ValueError, match="max_frames must be an integer"):
        load_clip((grey([50] * 8), 2.0, None, 0), SMALL, max_frames=max_frames)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", [grey([50]), tone(1.0)[0], 3, None, b"a.mp4", [grey([50]), 2]])
def test_sources_of_a_wrong_type(way, source):
    with pytest.raises(ValueError, match=r"in a tuple, got (ndarray|int|NoneType|bytes|list)"):
        WAYS[way](source)


@pytest.mark.parametrize("way", WAYS)
def test_tuples_of_a_wrong_length(way):
    with pytest.raises(ValueError, match="sample_rate"):
        WAYS[way]((grey([50]), 2.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1e38, -1e38, np.inf, np.nan])
def test_samples_that_are_not_finite_or_too_loud(way, dtype, value):
    wave = tone(1.0)[0].astype(dtype)
    wave[100] = value
    with pytest.raises(ValueError, match=r"within -1\.\.1"):
        WAYS[way]((None, 1, wave, 44_100))
    with pytest.raises(ValueError, match=r"within -1\.\.1"):
        PushSource().push_audio(wave)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": "2"}, "fps must be"),
        ({"fps": None}, "fps must be"),
        ({"sample_rate": "16000"}, "sample_rate must be"),
        ({"sample_rate": None}, "sample_rate must be"),
        ({"sample_rate": float("nan")}, "sample_rate must be"),
        ({"sample_rate": 16_000.5}, "sample_rate must be"),
    ],
)
def test_rates_of_a_wrong_type(way, change, message):
    good = {"frames": grey([0] * 4), "fps": 2.0, "waveform": tone(1.0)[0], "sample_rate": 16_000}
    with pytest.raises(ValueError, match=message):
        WAYS[way](tuple((good | change).values()))
    if "sample_rate" in change:
        with pytest.raises(ValueError, match=message):
            PushSource(**change)


@pytest.mark.parametrize("way", WAYS)
def test_a_path_below_home(tmp_path, monkeypatch, way):
    write(tmp_path / "a.mkv", grey([50] * 50))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WAYS[way]("~/a.mkv")
    with pytest.raises(ValueError, match=f"{tmp_path}/missing.mkv: "):
        WAYS[way]("~/missing.mkv")


@pytest.mark.parametrize("queue", [0, 1.5, "4", float("nan")])
def test_queue(queue):
    with pytest.raises(ValueError, match="queue must be"):
        windows((grey([50]), 2.0, None, 0), SMALL, queue=queue)


@pytest.mark.parametrize("field", ["patch", "merge", "temporal_patch", "mel_bins"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2"])
def test_fields_of_a_window(field, value):
    with pytest.raises(ValueError, match=f"WindowSpec.{field} must be a positive integer"):
        WindowSpec(**{field: value})


@pytest.mark.parametrize("way", WAYS)
def test_a_rate_may_be_a_fraction(way):
    WAYS[way]((grey([50] * 8), Fraction(30_000, 1001), None, 0))


@pytest.mark.parametrize("way", WAYS)
def test_frames_of_several_sizes(way):
    ragged = [grey([50])[0], grey([50], height=32)[0]]
    with pytest.raises(ValueError, match="frames must all have one shape"):
        WAYS[way]((ragged, 2.0, None, 0))
    with pytest.raises(ValueError, match="frames must all have one shape"):
        PushSource().push_frames(ragged, [0.0, 0.5])


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_that_cannot_be_used_names_its_file(tmp_path, way):
    Image.new("RGB", (400, 1)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match=r"thin\.png: an image of 400 x 1 pixels"):
        WAYS[way](tmp_path / "thin.png")


def test_animated_webp(tmp_path):
    frames = [Image.new("RGB", (64, 48), (grey, 0, 0)) for grey in (0, 90, 180)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=200)
    with pytest.raises(ValueError, match=r"a\.webp: no video .* convert it to GIF or MP4"):
        load_clip(tmp_path / "a.webp", SMALL)


@pytest.mark.parametrize("frames", [None, grey([50] * 4)])
def test_audio_too_short_for_a_token(frames):
    with pytest.warns(UserWarning, match=r"0\.010 s of audio are too short for a token"):
        load_clip((frames, 2.0, tone(0.01)[0], 16_000), SMALL)


def test_fewest_mel_frames_of_a_token_are_those_of_the_model():
    spec = dataclasses.replace(SMALL, min_mel_frames=1)
    clip = load_clip((None, None, tone(2.01)[0], 16_000), spec)
    assert clip.windows.mel_length.tolist() == [200, 1]


def test_an_mp4_with_its_index_at_the_end_through_a_pipe(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 480, 640, 3), np.uint8)
    data = write(tmp_path / "a.mp4", noise, options={"crf": "0"}).read_bytes()
    os.mkfifo(tmp_path / "pipe")

    def serve():
        with contextlib.suppress(BrokenPipeError), open(tmp_path / "pipe", "wb") as pipe:
            pipe.write(data)

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(ValueError, match=r"pipe: .*an MP4 with its index at the end"):
        load_clip(tmp_path / "pipe", SMALL)


def test_a_second_source_that_cannot_be_opened_closes_the_first(tmp_path, monkeypatch):
    closed, close = [], MediaFile.__exit__

    def record(self, *error):
        closed.append(self.name)
        close(self, *error)

    monkeypatch.setattr(MediaFile, "__exit__", record)
    path = write(tmp_path / "a.mp4", grey([50] * 8))
    with pytest.raises(ValueError, match=r"none\.wav: cannot be opened"):
        windows(path, SMALL, audio=tmp_path / "none.wav")
    assert closed == [str(path)]


def test_a_pipe_that_cannot_be_opened_is_closed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="nothing came"):
        load_clip(tmp_path / "pipe", SMALL, timeout=0.2)
    assert len(os.listdir("/proc/self/fd")) == before
