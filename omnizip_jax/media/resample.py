"""Sound of any rate and layout to mono at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float

from omnizip_jax.media.clock import Sound
from omnizip_jax.media.sound import SAMPLE_RATE


class Resampler:
    """Turns audio frames into sound on the clip's clock; the format may change on the way.

    Channels are averaged with equal weights, which is how the model was fed.

    Args:
        origin: start of the clip in the frames' own time, seconds.
    """

    def __init__(self, origin: float = 0.0):
        self._origin = origin
        self._format = None
        self._resampler = av.AudioResampler()
        self._end = 0.0

    def push(self, frame: av.AudioFrame) -> Iterator[Sound]:
        """Take a frame; yields the sound that is ready."""
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != self._format:
            yield from self.finish()
            self._format = kind
            self._resampler = av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
        yield from self._sounds(frame)

    def finish(self) -> Iterator[Sound]:
        """The rest, when no frame follows."""
        if self._format is not None:
            yield from self._sounds(None)

    def _sounds(self, frame):
        for part in self._resampler.resample(frame):
            if part is None or not part.samples:
                continue
            if part.pts is not None and part.time_base is not None:
                start = part.pts * float(part.time_base) - self._origin
            else:
                start = self._end
            self._end = start + part.samples / SAMPLE_RATE
            # Packed: PyAV miscounts the planes of eight channels and more, and reads beyond them.
            channels = part.to_ndarray().reshape(-1, part.layout.nb_channels).T
            yield Sound(start, np.ascontiguousarray(channels).mean(axis=0, dtype=np.float32))


def audio_frame(samples: Float[np.ndarray, " samples"], start: int, rate: int) -> av.AudioFrame:
    """Mono samples as a frame of which the first is number ``start`` of the sound."""
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate, frame.pts = rate, start
    frame.time_base = Fraction(1, rate)
    return frame
