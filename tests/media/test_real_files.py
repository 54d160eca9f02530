"""Real recordings against a reading of their own: PyAV's frames, numpy, and transformers' log-mel.

The files are those of ``real_files``; what cannot be fetched is skipped by name.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers import WhisperFeatureExtractor

from omnizip_jax.media import load_clip, window_frames
from omnizip_jax.window_spec import WindowSpec
from tests.media.real_files import DEBIAN, WHEELS, default_folder, fetch

pytestmark = pytest.mark.slow

FOLDER = default_folder()  # the user's cache; while tests run there is another one
SPEC = WindowSpec()
RATE = 16_000
GRADIO, KIVY, SCIKIT = WHEELS

# Package, file, seconds, whether there are frames, channels (0: no audio at all).
FILES = {
    "talking, mp4": (DEBIAN, "movie-hello.mp4", 8.33, True, 2),
    "talking, avi": (DEBIAN, "movie-hello.avi", 8.36, True, 2),
    "talking, mpeg": (DEBIAN, "movie-hello.mpeg", 8.34, True, 2),
    "phone, irregular timestamps": (DEBIAN, "VID_20191220_170832.mp4", 1.6, True, 2),
    "speech, mp3": (DEBIAN, "debian.mp3", 5.41, False, 1),
    "speech, ogg": (DEBIAN, "debian.ogg", 5.41, False, 1),
    "speech, wav": (DEBIAN, "debian.wav", 5.41, False, 1),
    "film, 5.1 sound": (SCIKIT, "bigbuckbunny.mp4", 5.31, True, 6),
    "street, no track": (SCIKIT, "bikes.mp4", 10.0, True, 0),
    "telephone pictures": (SCIKIT, "carphone_pristine.mp4", 4.0, True, 0),
    "city, mpeg-2, no track": (KIVY, "cityCC0.mpg", 7.6, True, 0),
    "screen, full HD": (GRADIO, "a.mp4", 7.04, True, 2),
    "mpeg-4 and mp3, avi": (GRADIO, "b.avi", 5.03, True, 2),
    "the same, mp4": (GRADIO, "videos/b.mp4", 5.0, True, 2),
    "the same, no track": (GRADIO, "muted_b.mp4", 5.0, True, 0),
    "half a minute": (GRADIO, "world.mp4", 30.5, True, 2),
    "music, wav": (GRADIO, "sax.wav", 16.0, False, 1),
    "stereo, wav": (GRADIO, "recording1.wav", 3.33, False, 2),
    "8 kHz, wav": (GRADIO, "audio_sample.wav", 1.01, False, 1),
}


@pytest.fixture(scope="module")
def missing():
    return fetch(FOLDER)


@pytest.fixture(params=FILES)
def real(request, missing):
    """A file, and what is known of it."""
    package, name, *known = FILES[request.param]
    if package in missing:
        pytest.skip(f"{name}: {package} could not be fetched: {missing[package].strip()}")
    (path,) = (p for p in (FOLDER / package).rglob(Path(name).name) if str(p).endswith(f"/{name}"))
    return path, *known


class Reading:
    """All of a file, decoded by PyAV in a row: no look-ahead, no skipped frames, no resampling.

    Attributes:
        shown: the frame in the middle of each half second, as long as there is one.
        end: of the pictures, seconds.
        sound: start and mono samples of each frame.
    """

    def __init__(self, path: Path):
        self.shown: list[av.VideoFrame] = []
        self.sound: list[tuple[float, np.ndarray]] = []
        self.end, self.rate, self.channels = 0.0, 0, 0
        self._last = None
        with av.open(str(path)) as container:
            streams = [*container.streams.video[:1], *container.streams.audio[:1]]
            self._usual = next(
                (s.average_rate for s in container.streams.video if s.average_rate), 25
            )
            origin = min(float((s.start_time or 0) * s.time_base) for s in streams)
            for frame in container.decode(streams):
                self._take(frame, float(frame.pts * frame.time_base) - origin)
        self._show(self._last, self.end)

    def _take(self, frame, start: float) -> None:
        if isinstance(frame, av.AudioFrame):
            self.rate, self.channels = frame.sample_rate, frame.layout.nb_channels
            self.sound.append((start, _mono(frame)))
            return
        self._show(self._last, start)
        length = (frame.duration or 0) * frame.time_base or 1 / self._usual
        self._last, self.end = frame, start + float(length)

    def _show(self, frame, until: float) -> None:
        while frame is not None and (len(self.shown) + 0.5) / 2 < until - 1e-3:
            self.shown.append(frame)

    def waveform(self) -> np.ndarray:
        """At 16 kHz, by cutting or extending the spectrum; what comes late begins late."""
        samples = np.concatenate([samples for _, samples in self.sound])
        length = round(len(samples) * RATE / self.rate)
        spectrum = np.zeros(length // 2 + 1, complex)
        whole = np.fft.rfft(samples)[: len(spectrum)]
        spectrum[: len(whole)] = whole
        resampled = np.fft.irfft(spectrum, length) * (length / len(samples))
        late = round(self.sound[0][0] * RATE)
        return np.concatenate([np.zeros(late), resampled]).astype(np.float32)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    return samples.mean(0)


def test_times(real):
    path, seconds, has_video, channels = real
    clip, reading = load_clip(path, SPEC), Reading(path)
    assert clip.has_video == bool(reading.shown) == has_video
    assert clip.has_audio == bool(reading.sound) == bool(channels)
    assert reading.channels == channels
    ends = [start + len(samples) / reading.rate for start, samples in reading.sound[-1:]]
    assert clip.duration == pytest.approx(max(reading.end, *ends, 0.0), abs=0.05)
    assert clip.duration == pytest.approx(seconds, abs=0.05)
    assert int(clip.windows.grid_mask.sum()) == -(-len(reading.shown) // 2)


def test_frames(real):
    path, _, has_video, _ = real
    if not has_video:
        pytest.skip(f"{path.name} has no pictures")
    reading, found = Reading(path), window_frames(load_clip(path, SPEC).windows)
    height, width = found.shape[1:3]
    for index, (frame, picture) in enumerate(zip(reading.shown, found, strict=False)):
        turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        upright = Image.fromarray(np.ascontiguousarray(turned))
        expected = np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC))
        difference = np.abs(expected.astype(int) - picture)
        # Another scaler, and another way from YUV: 1.5 and 7 of 255 at the most, measured.
        assert difference.mean() < 2.5 and np.quantile(difference, 0.99) < 10, index
    if len(reading.shown) % 2:
        np.testing.assert_array_equal(found[-1], found[-2])


def test_log_mel(real):
    path, _, _, channels = real
    if not channels:
        pytest.skip(f"{path.name} has no sound")
    reading, windows = Reading(path), load_clip(path, SPEC).windows
    pieces = zip(windows.mel, windows.mel_length, strict=True)
    found = np.concatenate([mel[:, :length] for mel, length in pieces], axis=1)
    extractor = WhisperFeatureExtractor(feature_size=128)
    inputs = extractor(
        reading.waveform(), sampling_rate=RATE, padding=False, truncation=False, return_tensors="np"
    )
    heard = inputs["input_features"][0]
    assert abs(found.shape[1] - heard.shape[1]) <= 1
    frames = min(found.shape[1], heard.shape[1])
    # Bands that end well below half of either rate: where resamplers cut off is their own.
    limit = round(0.85 * min(reading.rate, RATE) / 2 / (RATE / 400))
    bands = extractor.mel_filters[limit:].sum(0) == 0
    difference = np.abs(found[:, :frames] - heard[:, :frames])[bands]
    print(path.name, bands.sum(), difference.mean(), np.quantile(difference, 0.99))
    assert difference.mean() < 0.005 and np.quantile(difference, 0.99) < 0.02
