"""Media in memory: whole clips as arrays, and arrays that the user's program pushes."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.audio import Resampler, audio_frame
from omnizip_jax.media.bounded_queue import BoundedQueue, QueueClosed
from omnizip_jax.media.pixels import resize
from omnizip_jax.media.timeline import AudioChunk, Event, VideoFrame
from omnizip_jax.media.validation import (
    as_array,
    check_fps,
    check_frames,
    check_rate,
    check_samples,
    check_waveform,
)


class MediaArrays(contextlib.AbstractContextManager["MediaArrays"]):
    """Frames and a waveform with the interface of a ``MediaFile``.

    Args:
        source: (frames, fps, waveform, sample rate): frames uint8 RGB [T, H, W, 3], RGBA over
            white, or None; waveform mono float [S], normally within -1..1, or None. A rate is
            ignored where its stream is absent.
        use_video, use_audio: False ignores that stream.

    Raises:
        ValueError: a wrong type, shape or rate, or samples that are not finite.
    """

    name = "arrays"

    def __init__(self, source: tuple, *, use_video: bool = True, use_audio: bool = True):
        if len(source) != 4:
            raise ValueError(
                f"arrays come as (frames, fps, waveform, sample_rate), got {len(source)} values"
            )
        frames, fps, waveform, rate = source
        self._frames = as_array("frames", frames if use_video else None)
        self._waveform = as_array("waveform", waveform if use_audio else None)
        if self._frames is None and self._waveform is None:
            expected = " or ".join(["frames"] * use_video + ["a waveform"] * use_audio)
            raise ValueError(f"expected {expected}, got None")
        if self._frames is not None:
            check_frames(self._frames)
            check_fps(fps)
            self._fps = float(fps)
        if self._waveform is not None:
            check_waveform(self._waveform, "waveform")
            check_rate(rate)
        self._rate = 0 if self._waveform is None else int(rate)
        self.has_video, self.has_audio = self._frames is not None, self._waveform is not None

    def count(self, until: float = math.inf) -> tuple[float, float]:
        """Ends of the video and of all media, seconds."""
        video = 0.0 if self._frames is None else len(self._frames) / self._fps
        audio = 0.0 if self._waveform is None else len(self._waveform) / self._rate
        return video, max(video, audio)

    @property
    def duration(self) -> float:
        return self.count()[1]

    claimed = duration

    def __exit__(self, *_):
        pass

    def decode(
        self,
        is_needed: Callable[[float, float], bool] | None = None,
        *,
        video: bool = True,
        audio: bool = True,
    ) -> Iterator[VideoFrame | AudioChunk]:
        """Yield the frames that are needed, then the audio; see ``MediaFile.decode``."""
        if self._frames is not None and video:
            height, width = self._frames.shape[1:3]
            last = len(self._frames) - 1
            for index, frame in enumerate(self._frames):
                start, end = index / self._fps, (index + 1) / self._fps
                if is_needed is None or index == last or is_needed(start, end):
                    render = functools.partial(resize, frame)
                    yield VideoFrame(start, end, height, width, render)
        if self._waveform is not None and audio:
            resampler = Resampler()
            for start in range(0, len(self._waveform), self._rate):
                block = self._waveform[start : start + self._rate]
                check_samples(block)
                yield from resampler.push(audio_frame(block, start, self._rate))
            yield from resampler.finish()


class PushSource:
    """A source for ``windows`` that the user's program fills, from any thread.

        source = PushSource(sample_rate=48_000)
        with windows(source) as stream:  # on another thread: source.push_frames(...), ...
            for window in stream:
                ...

    Pushing never blocks: arrays are stored until a window takes them. Where the consumer can
    be slower than the source for long, ``when_slow="skip"`` bounds the memory. A window is
    ready once a frame and 2.5 ms of audio past its end have been pushed (of the streams in use:
    ``windows(source, use_audio=False)`` does not wait for audio), or after ``close()``.

    Args:
        sample_rate: of the audio, samples per second.

    Raises:
        ValueError: a rate that is not a positive integer.
    """

    name = "pushed arrays"

    def __init__(self, sample_rate: int = 16_000):
        check_rate(sample_rate)
        self.events: BoundedQueue[Event] = BoundedQueue()
        self._rate = int(sample_rate)
        self._lock = threading.Lock()  # samples and frames are numbered in the order of pushing
        self._resampler = Resampler()
        self._finished = False
        self._samples = 0  # pushed, or end of the last audio
        self._last, self._gap = 0.0, 1 / 25  # of the frames, seconds

    def push_frames(
        self, frames: UInt8[np.ndarray, "*T H W channels"], times: float | Iterable[float]
    ) -> None:
        """Add video frames. They are copied.

        Args:
            frames: uint8 RGB [T, H, W, 3], or one frame [H, W, 3]; RGBA is shown over white.
            times: when each appears, seconds since the start of the stream, never decreasing.

        Raises:
            ValueError: wrong type or shape, times that go back or do not match, or the source is
                closed. Nothing has been added then.
        """
        frames = as_array("frames", frames)
        if frames.ndim == 3:
            frames = frames[None]
        check_frames(frames, "[T, H, W, 3] or [H, W, 3]", at_least=0)
        starts = np.atleast_1d(np.asarray(times, float))
        if starts.shape != frames.shape[:1]:
            raise ValueError(f"expected a time for each of {len(frames)} frames, got {times!r}")
        height, width = frames.shape[1:3]
        with self._lock:
            self._check_open()
            if not np.isfinite(starts).all() or (np.diff(starts, prepend=self._last) < 0).any():
                raise ValueError(
                    f"times must be seconds since the start of the stream that never decrease, "
                    f"got {times!r} after {self._last:g}"
                )
            for start, frame in zip(starts.tolist(), frames, strict=True):
                if start > self._last:
                    self._gap = min(start - self._last, 1.0)
                self._last = start
                render = functools.partial(resize, frame.copy())
                self._put(VideoFrame(start, start + self._gap, height, width, render))

    def push_audio(self, samples: Float[np.ndarray, " S"], time: float | None = None) -> None:
        """Add audio.

        Args:
            samples: mono float [S], normally within -1..1.
            time: of the first sample, seconds since the start of the stream; None continues the
                previous audio. A gap becomes silence.

        Raises:
            ValueError: wrong type or shape, NaN, or the source is closed. Nothing has been added
                then.
        """
        samples = as_array("samples", samples)
        check_waveform(samples, "samples")
        check_samples(samples)
        if time is not None and not (math.isfinite(time) and time >= 0):
            raise ValueError(f"time must be seconds since the start, got {time!r}")
        with self._lock:
            self._check_open()
            if time is not None:
                self._samples = round(time * self._rate)
            if len(samples):
                self._put(*self._resampler.push(audio_frame(samples, self._samples, self._rate)))
                self._samples += len(samples)

    def close(self) -> None:
        """End the stream; the last window is emitted as it is. May be called twice."""
        with self._lock:
            if not self._finished:
                self._finished = True
                self._put(*self._resampler.finish())
                self.events.finish()

    def _check_open(self) -> None:
        if self._finished or self.events.closed:
            raise ValueError("the source or its stream is closed: create a new PushSource")

    def _put(self, *events: Event) -> None:
        with contextlib.suppress(QueueClosed):  # closed by the consumer at this very moment
            for event in events:
                self.events.put(event)
