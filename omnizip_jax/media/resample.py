"""Sound of any rate and layout to mono at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from omnizip_jax.media.clock import Sound
from omnizip_jax.media.sound import SAMPLE_RATE


class Resampler:
    """Resamples audio frames of one format; channels are averaged, as the model was fed.

    Args:
        frame: the first of them.
        origin: start of the clip in the frames' time, seconds.
    """

    def __init__(self, frame: av.AudioFrame, origin: Fraction):
        self._kind = frame.format.name, frame.layout.name, frame.sample_rate
        self._resampler = av.AudioResampler("fltp", frame.layout, SAMPLE_RATE)
        self._origin = origin
        self._end = 0.0

    def takes(self, frame: av.AudioFrame) -> bool:
        return self._kind == (frame.format.name, frame.layout.name, frame.sample_rate)

    def push(self, frame: av.AudioFrame | None) -> Iterator[Sound]:
        """Sound that is ready; ``None`` asks for the rest."""
        for part in self._resampler.resample(frame):
            if part is None or not part.samples:
                continue
            if part.pts is None:
                start = self._end
            else:
                start = float(part.pts * part.time_base - self._origin)
            self._end = start + part.samples / SAMPLE_RATE
            yield Sound(start, part.to_ndarray().mean(axis=0, dtype=np.float32))
