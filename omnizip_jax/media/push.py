"""Pictures and sound that the user's own program pushes."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.arrays import check_rate
from omnizip_jax.media.bounded_queue import Channel, Closed
from omnizip_jax.media.clock import End, Picture, Sound, check_samples
from omnizip_jax.media.pixels import resize
from omnizip_jax.media.resample import Resampler, audio_frame


class PushSource:
    """A source for ``windows`` that is filled by hand, from any thread.

        source = PushSource(sample_rate=48_000)
        with windows(source) as stream:  # on another thread: source.push_frames(...), ...
            for window in stream:
                ...

    Pushing never waits: what is pushed is kept until a window takes it. Where the consumer can
    be slower than the source for long, ``when_slow="skip"`` bounds the memory. A window is
    ready once a picture and 2.5 ms of sound past its end have been pushed (of the streams that
    are in use: ``windows(source, use_audio=False)`` waits for no sound), or after ``close()``.

    Args:
        sample_rate: of the sound, samples per second.

    Raises:
        ValueError: a rate that is not a positive integer.
    """

    name = "pushed arrays"

    def __init__(self, sample_rate: int = 16_000):
        check_rate(sample_rate)
        self.events: Channel[Picture | Sound | End] = Channel()
        self._rate = int(sample_rate)
        self._lock = threading.Lock()  # sound and pictures are numbered in the order of pushing
        self._resampler = Resampler()
        self._finished = False
        self._heard = 0  # samples
        self._last, self._gap = 0.0, 1 / 25  # of the pictures, seconds

    def push_frames(
        self, frames: UInt8[np.ndarray, "*T H W 3"], times: float | Iterable[float]
    ) -> None:
        """Add pictures. They are copied.

        Args:
            frames: uint8 RGB [T, H, W, 3], or one picture [H, W, 3].
            times: when each appears, seconds since the start of the stream, never decreasing.

        Raises:
            ValueError: wrong type or shape, times that go back or do not match, or the source is
                closed. Nothing has been added then.
        """
        frames = np.asarray(frames)
        if frames.ndim == 3:
            frames = frames[None]
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(
                f"frames must be uint8 RGB [T, H, W, 3] or [H, W, 3], got {frames.dtype} "
                f"{frames.shape}"
            )
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
                self._put(Picture(start, start + self._gap, height, width, render))

    def push_sound(self, samples: Float[np.ndarray, " S"], time: float | None = None) -> None:
        """Add sound.

        Args:
            samples: mono float [S], normally within -1..1.
            time: of the first sample, seconds since the start of the stream; by default it
                follows on the sound before. A gap becomes silence.

        Raises:
            ValueError: wrong type or shape, NaN, or the source is closed. Nothing has been added
                then.
        """
        samples = np.asarray(samples)
        if not np.issubdtype(samples.dtype, np.floating) or samples.ndim != 1:
            raise ValueError(
                f"samples must be float [S], mono and within -1..1, got {samples.dtype} "
                f"{samples.shape}; average channels, and divide integers by their range"
            )
        check_samples(samples)
        if time is not None and not (math.isfinite(time) and time >= 0):
            raise ValueError(f"time must be seconds since the start, got {time!r}")
        with self._lock:
            self._check_open()
            if time is not None:
                self._heard = round(time * self._rate)
            if len(samples):
                self._put(*self._resampler.push(audio_frame(samples, self._heard, self._rate)))
                self._heard += len(samples)

    def close(self) -> None:
        """No more comes; the last window is given out as it is. May be called twice."""
        with self._lock:
            if not self._finished:
                self._finished = True
                self._put(*self._resampler.finish())
                self.events.finish()

    def _check_open(self) -> None:
        if self._finished or self.events.closed:
            raise ValueError("nothing more is taken: the source or its stream is closed")

    def _put(self, *events) -> None:
        with contextlib.suppress(Closed):  # closed by the consumer at this very moment
            for event in events:
                self.events.put(event)
