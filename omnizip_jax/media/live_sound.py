"""Log-mel spectrogram of sound that is still coming."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from omnizip_jax.media.clock import Sound, continue_sound
from omnizip_jax.media.sound import (
    HISTORY,
    HOP,
    LOOKAHEAD,
    SAMPLE_RATE,
    PowerStream,
    log_mel,
    loudness,
)


class MelStream:
    """Features of consecutive blocks of frames, as soon as their sound is there.

    The spectrogram is that of the whole clip to the last bit (``PowerStream``): a frame waits
    for 40 samples (2.5 ms) past its hop. The floor of the dynamic range, 80 dB below the loudest
    moment of the clip, may not be known yet; the loudest moment up to the end of the block then
    takes its place. See ``docs/streaming.md`` for how far that is off.
    """

    def __init__(self, bins: int):
        self.written = 0  # samples so far
        self.silent = False  # the last of them were filled in
        self._maximum = -np.inf  # loudness so far
        self._stream = PowerStream(bins)
        self._samples: list[np.ndarray] = []  # not transformed yet
        self._power = np.zeros((bins, 0), np.float32)  # from frame ``_taken`` on
        self._taken = 0
        self._finished = False

    @property
    def frames(self) -> int:
        """Frames that are complete, from the start of the stream."""
        if self._finished:
            return -(-self.written // HOP)
        return (self.written - LOOKAHEAD) // HOP if self.written > HISTORY else 0

    def push(self, samples: Float[np.ndarray, " samples"]) -> None:
        """Append sound; see ``continue_sound``."""
        if len(samples):
            self.silent = False
            self.written += len(samples)
            self._samples.append(samples)

    def finish(self) -> None:
        """No more sound: the last frames see silence after it."""
        if not self._finished:
            self._transform()
            self._append(self._stream.finish())
            self._finished = True

    def silence_until(self, sample: int) -> None:
        """Fill up with silence, unless sound is there or the stream is finished."""
        if not self._finished and sample > self.written:
            self.push(np.zeros(sample - self.written, np.float32))
            self.silent = True

    def take(self, end: int, maximum: float | None = None) -> Float[np.ndarray, "bins frames"]:
        """Features of the frames from the last ``end`` to this one; they are handed over.

        Frames that are not complete by now are left out for good.

        Args:
            end: number of a frame.
            maximum: largest ``loudness`` of the whole sound, if known (``largest_loudness``).
        """
        self._transform()
        ready = max(0, min(end, self.frames) - self._taken)
        power, self._power = self._power[:, :ready], self._power[:, end - self._taken :]
        self._taken = end
        self._maximum = max(self._maximum, float(loudness(power).max(initial=-np.inf)))
        return log_mel(power, self._maximum if maximum is None else maximum)

    def _transform(self):
        samples, self._samples = self._samples, []
        if samples:
            self._append(self._stream.push(np.concatenate(samples)))

    def _append(self, power):
        late = max(0, self._taken - self._stream.frames + power.shape[1])
        self._power = np.concatenate([self._power, power[:, late:]], axis=1)


def largest_loudness(sounds: Iterable[Sound], bins: int) -> float:
    """Largest ``loudness`` of all the sound: the first of a file's two passes."""
    stream, written, samples, largest = PowerStream(bins), 0, [], -np.inf
    for sound in sounds:
        samples.append(continue_sound(written, sound))
        written += len(samples[-1])
        if written - stream.written > SAMPLE_RATE:  # small blocks cost more
            power, samples = stream.push(np.concatenate(samples)), []
            largest = max(largest, float(loudness(power).max()))
    rest = [stream.push(np.concatenate(samples))] if samples else []
    return max(
        [largest, *(float(loudness(p).max(initial=-np.inf)) for p in (*rest, stream.finish()))]
    )
