"""Assembly of windows from live frames and audio on one clock."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.pixels import resize
from omnizip_jax.media.timeline import SAMPLE_RATE, AudioChunk, VideoFrame
from omnizip_jax.media.windowing import WindowAssembler
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

LEAD = 1.0  # s past the end of a window after which the missing modality is not waited for
_MAX_AUDIO_LAG = 2.0  # s behind the frames, beyond which the audio has paused
_MAX_JUMP = 60.0  # s between the times of two frames


class LiveAssembler:
    """Assembles the windows of a live session; see ``WindowAssembler``. Not thread-safe.

    Args:
        spec: shape of the windows.
        has_video, has_audio: modalities to wait for, at most ``LEAD`` seconds.

    Attributes:
        last: time of the last frame in seconds.
    """

    def __init__(self, spec: WindowSpec, has_video: bool = True, has_audio: bool = True):
        self.last = 0.0
        self._assembler = WindowAssembler(
            spec, has_video=has_video, has_audio=has_audio, max_lead=LEAD
        )
        self._interval = 0.5
        self._samples = 0

    def push_frame(self, frame: UInt8[np.ndarray, "H W 3"], time: float) -> Iterator[Window]:
        """Add a frame and yield the windows that it completes.

        Raises:
            RequestError: its time goes back, or jumps.
        """
        if not self.last <= time <= max(self.last, self._samples / SAMPLE_RATE) + _MAX_JUMP:
            raise RequestError(
                f"the time of a frame must not go back, nor jump by more than {_MAX_JUMP:g} s; got "
                f"{time:.3f} s after {self.last:.3f} s"
            )
        if time > self.last:
            self._interval = min(time - self.last, 1.0)
        self.last = time
        height, width = frame.shape[:2]
        render = functools.partial(resize, frame)
        video_frame = VideoFrame(time, time + self._interval, height, width, render)
        yield from self._assembler.push(video_frame)

    def push_audio(self, samples: Float[np.ndarray, " S"]) -> Iterator[Window]:
        """Add audio that follows the audio before, and yield the windows that it completes.

        Audio that starts late, or resumes after a pause, starts at the time of the last frame.
        """
        if self.last - self._samples / SAMPLE_RATE > _MAX_AUDIO_LAG:
            self._samples = round(self.last * SAMPLE_RATE)
        start, self._samples = self._samples / SAMPLE_RATE, self._samples + len(samples)
        yield from self._assembler.push(AudioChunk(start, samples))

    def incomplete(self) -> list[Window]:
        """Copies of the incomplete windows; the state does not change."""
        try:
            return list(copy.deepcopy(self._assembler).finish())
        except ValueError:  # nothing was pushed yet
            return []
