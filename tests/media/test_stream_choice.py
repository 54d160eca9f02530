"""Files with several streams of a kind: the one a player takes, or the one that is asked for."""

from __future__ import annotations

import functools
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from omnizip_jax.media import PushSource, load_clip, window_frames, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone

SMALL = WindowSpec(grid_slots=12)
DEFAULT = 1
load = functools.partial(load_clip, spec=SMALL)


def several(path, videos=(), sounds=()):
    """Videos as (frames, level, disposition), sounds as (hertz, disposition); 2 s each."""
    with av.open(str(path), "w") as container:
        streams = []
        for count, level, disposition in videos:
            video = container.add_stream("mpeg4" if count > 1 else "mjpeg", rate=4)
            video.width, video.height = 64, 48
            video.pix_fmt = "yuv420p" if count > 1 else "yuvj420p"
            video.disposition = disposition
            frames = []
            for index, pixels in enumerate(grey([level] * count)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 4)
                frames.append(frame)
            streams.append((video, frames))
        for hertz, disposition in sounds:
            audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
            audio.disposition = disposition
            samples = np.round(tone(2.0, hertz=hertz) * 32767 * bool(hertz)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            streams.append((audio, [frame]))
        for stream, frames in streams:
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))
    return path


def loudest(mel):
    return int(mel.max(1).argmax()) if mel.max() > 0 else None


SILENCE, LOW, HIGH = 0, 500, 4000


def low_or_high(mel):
    return {True: LOW, False: HIGH}[loudest(mel) < 40]


@pytest.mark.parametrize("kind", ["mkv", "mov"])
def test_the_default_audio_is_used_and_the_other_reported(tmp_path, kind):
    path = several(tmp_path / f"a.{kind}", [(8, 90, DEFAULT)], [(SILENCE, 0), (LOW, DEFAULT)])
    message = f"a.{kind}: has 2 audio streams; number 1, which FFmpeg prefers, is used"
    with pytest.warns(UserWarning, match=message):
        assert low_or_high(load(path).windows.mel[0]) == LOW
    with pytest.warns(UserWarning, match=message) as caught:
        (window,) = windows(path, SMALL)
        assert low_or_high(window.mel) == LOW
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["mkv", "mov"])
@pytest.mark.filterwarnings("ignore:.*video streams")
def test_one_picture_before_the_video_is_not_the_video(tmp_path, kind):
    path = several(tmp_path / f"a.{kind}", [(1, 30, 0), (8, 200, DEFAULT)])
    pictures = window_frames(load(path).windows)
    assert len(pictures) == 4 and abs(pictures.mean() - 200) < 4


def test_streams_can_be_chosen(tmp_path):
    videos, sounds = [(8, 60, DEFAULT), (8, 200, 0)], [(LOW, DEFAULT), (HIGH, 0)]
    path = several(tmp_path / "a.mkv", videos, sounds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for video, level in ((0, 60), (1, 200)):
            for audio, hertz in ((0, LOW), (1, HIGH)):
                options = {"video_stream": video, "audio_stream": audio}
                clip = load(path, **options)
                (window,) = windows(path, SMALL, **options)
                for mel in (clip.windows.mel[0], window.mel):
                    assert low_or_high(mel) == hertz
                for shown in (clip.windows, window):
                    assert abs(window_frames(shown).mean() - level) < 4
    for wrong in (2, -1, "0", 1.0):
        with pytest.raises(
            ValueError, match=r"a\.mkv: audio_stream must be the number of one of its 2"
        ):
            load(path, audio_stream=wrong, video_stream=0)


def test_arrays_have_no_choice():
    frames = (grey([50] * 4), 2.0, None, 0)
    for name in ("video_stream", "audio_stream"):
        with pytest.raises(ValueError, match=f"{name} chooses a stream of a file"):
            load(frames, **{name: 0})
        with pytest.raises(ValueError, match=f"{name} chooses a stream of a file"):
            windows(PushSource(), SMALL, **{name: 0})
