"""Assembly of windows from live frames and audio on one clock."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.pixels import resize
from omnizip_jax.media.timeline import SAMPLE_RATE, AudioChunk, VideoFrame
from omnizip_jax.media.windowing import WindowAssembler
from omnizip_jax.serve.errors import RequestError, invalid_input
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

LEAD = 1.0  # s past the end of a window after which the missing modality is not waited for
_MAX_LAG = 2.0  # s between frames and audio, beyond which the later one continues from the other
_MAX_PAUSE = 10.0  # s for which a frame is held
_MAX_STEP_BACK = 1.0  # s by which a clock may go back for a moment


class LiveAssembler:
    """Assembles the windows of a live session; see ``WindowAssembler``. Not thread-safe.

    The times of frames may begin anywhere. After a pause of both modalities, and when the times go
    back, the incomplete windows are completed and the next one begins at the new time.

    Args:
        spec: shape of the windows.
        has_video, has_audio: modalities to wait for, at most ``LEAD`` seconds.

    Attributes:
        last: time of the last frame in seconds.
        start: time at which the last window that was yielded starts.
        jumped_from: time before the last frame, if that frame began a new clock, or None.
        is_late: the last frame was dropped because its window was complete.
    """

    def __init__(self, spec: WindowSpec, has_video: bool = True, has_audio: bool = True):
        self.last = self.start = 0.0
        self.jumped_from: float | None = None
        self.is_late = False
        self._spec = spec
        self._new_assembler = functools.partial(
            WindowAssembler, spec, has_video=has_video, has_audio=has_audio, max_lead=LEAD
        )
        self._assembler = self._new_assembler()
        self._origin = 0.0  # time at which the assembler's own clock is 0
        self._any_frame = False
        self._interval = 0.5
        self._samples = 0

    def push_frame(self, frame: UInt8[np.ndarray, "H W 3"], time: float) -> Iterator[Window]:
        """Add a frame and yield the windows that it completes.

        Raises:
            RequestError: it is earlier than the frame before it.
        """
        pause = time - max(self.last, self._audio_end)
        jumps = self._any_frame and (pause > _MAX_PAUSE or time < self.last - _MAX_STEP_BACK)
        self.jumped_from = self.last if jumps else None
        if jumps:
            yield from self._timed(_finish(self._assembler))
            self._assembler = self._new_assembler()
            self._origin, self._samples, self.last = time, 0, time
        elif self._any_frame and time < self.last:
            raise RequestError(
                f"frames must be sent in the order of their times, got {time:.3f} s after "
                f"{self.last:.3f} s; a clock that was set back by more than {_MAX_STEP_BACK:g} s "
                "is accepted"
            )
        elif self._any_frame:
            self._interval = min(time - self.last, 1.0) or self._interval
            self._align(time, self._emitted_until - _MAX_LAG, math.inf)
        else:
            self._align(time, self._emitted_until, self._audio_end + _MAX_LAG)
        height, width = frame.shape[:2]
        local, render = time - self._origin, functools.partial(resize, frame)
        video_frame = VideoFrame(local, local + self._interval, height, width, render)
        late = self._assembler.late_frames
        yield from self._timed(self._assembler.push(video_frame))
        self.is_late = self._assembler.late_frames > late
        self.last, self._any_frame = time, True

    def push_audio(self, samples: Float[np.ndarray, " S"]) -> Iterator[Window]:
        """Add audio that follows the audio before, and yield the windows that it completes.

        Audio that starts late, or resumes after a pause, starts at the time of the last frame.
        """
        if self.last - self._audio_end > _MAX_LAG:
            self._samples = round((self.last - self._origin) * SAMPLE_RATE)
        start, self._samples = self._samples / SAMPLE_RATE, self._samples + len(samples)
        yield from self._timed(self._assembler.push(AudioChunk(start, samples)))

    def incomplete(self) -> list[Window]:
        """Copies of the incomplete windows; the state does not change."""
        return list(_finish(copy.deepcopy(self._assembler)))

    def _align(self, time: float, first: float, last: float) -> None:
        """Place a frame at the end of the audio unless its time is within these bounds."""
        if not first <= time <= last:
            self._origin += time - self._audio_end

    @property
    def _audio_end(self) -> float:
        return self._origin + self._samples / SAMPLE_RATE

    @property
    def _emitted_until(self) -> float:
        return self._origin + self._assembler.emitted * self._spec.seconds

    def _timed(self, windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            self.start = self._emitted_until - self._spec.seconds
            yield window


def _finish(assembler: WindowAssembler) -> Iterator[Window]:
    with contextlib.suppress(RequestError), invalid_input():  # nothing was pushed yet
        yield from assembler.finish()
