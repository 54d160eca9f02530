"""Live pictures and sound to windows, on one clock."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.pixels import resize
from omnizip_jax.media.timeline import SAMPLE_RATE, AudioChunk, VideoFrame
from omnizip_jax.media.windowing import WindowAssembler
from omnizip_jax.serve.failure import Failure
from omnizip_jax.types import Window

LEAD = 1.0  # s past a window's end of one stream until the other one is given up for it
_LAG = 2.0  # s that sound may be behind the pictures before it is thought to have paused
_JUMP = 60.0  # s; a longer jump of the pictures' times is a fault


class Incoming:
    """Cuts what a client sends; see ``WindowAssembler``. Belongs to one thread at a time.

    Args:
        spec: shape of the windows.
        has_video, has_audio: what is waited for, at most ``LEAD`` seconds.

    Attributes:
        last: time of the last picture, seconds.
    """

    def __init__(self, spec: WindowSpec, has_video: bool = True, has_audio: bool = True):
        self.last = 0.0
        self._assembler = WindowAssembler(
            spec, has_video=has_video, has_audio=has_audio, max_lead=LEAD
        )
        self._gap = 0.5
        self._heard = 0  # samples

    def picture(self, frame: UInt8[np.ndarray, "H W 3"], time: float) -> Iterator[Window]:
        """A picture, and the windows that it completes.

        Raises:
            Failure: its time goes back, or jumps.
        """
        if not self.last <= time <= max(self.last, self._heard / SAMPLE_RATE) + _JUMP:
            raise Failure(
                f"a picture's time must not go back, nor jump by more than {_JUMP:g} s; got "
                f"{time:.3f} s after {self.last:.3f} s"
            )
        if time > self.last:
            self._gap = min(time - self.last, 1.0)
        self.last = time
        height, width = frame.shape[:2]
        render = functools.partial(resize, frame)
        yield from self._assembler.push(VideoFrame(time, time + self._gap, height, width, render))

    def sound(self, samples: Float[np.ndarray, " S"]) -> Iterator[Window]:
        """Sound that follows on the sound before, and the windows that it completes.

        Audio that begins late, or goes on after a pause, belongs to the last picture's time.
        """
        if self.last - self._heard / SAMPLE_RATE > _LAG:
            self._heard = round(self.last * SAMPLE_RATE)
        start, self._heard = self._heard / SAMPLE_RATE, self._heard + len(samples)
        yield from self._assembler.push(AudioChunk(start, samples))

    def rest(self) -> list[Window]:
        """Windows that are not complete, as they are; nothing is taken out."""
        try:
            return list(copy.deepcopy(self._assembler).finish())
        except ValueError:  # nothing has come yet
            return []
