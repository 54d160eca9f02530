"""Whisper's log-mel spectrogram, in the two steps that files and live streams share.

``mel_power`` is exact on any block that brings its neighbourhood along; ``log_mel`` needs one
number from the rest of the sound, its maximum. A file knows it after one pass, a live stream
puts a running maximum in its place.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

SAMPLE_RATE = 16_000
FRAME = 400  # samples under one Hann window
HOP = 160  # samples from one frame to the next: 100 frames a second
HISTORY = FRAME // 2  # samples a block needs before the centre of its first frame
LOOKAHEAD = FRAME // 2 - HOP  # samples it needs past its last hop: 2.5 ms

_BLOCK = 3000  # frames transformed at once; bounds memory, not results


def mel_power(
    samples: Float[np.ndarray, " samples"], bins: int
) -> Float[np.ndarray, "bins frames"]:
    """Mel power spectrogram of consecutive frames.

    Args:
        samples: mono sound at 16 kHz: ``HISTORY`` samples, 160 for each frame, ``LOOKAHEAD``
            samples. Frame k is centred on sample ``HISTORY + 160 k``.
        bins: number of mel bands.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    hann = np.hanning(FRAME + 1)[:-1]  # periodic
    filters = mel_filters(bins)
    power = np.empty((bins, len(frames)), np.float32)
    for start in range(0, len(frames), _BLOCK):
        block = slice(start, start + _BLOCK)
        # In float64: the quietest values that survive lie 80 dB below the loudest.
        spectrum = np.fft.rfft(frames[block] * hann)
        power[:, block] = filters @ (spectrum.real**2 + spectrum.imag**2).T
    return power


def loudness(power: Float[np.ndarray, "bins frames"]) -> Float[np.ndarray, "bins frames"]:
    """Decimal logarithm of the power, never below -10."""
    return np.log10(np.maximum(power, 1e-10))


def log_mel(
    power: Float[np.ndarray, "bins frames"], maximum: float
) -> Float[np.ndarray, "bins frames"]:
    """Features of the audio encoder.

    Args:
        power: from ``mel_power``.
        maximum: the largest ``loudness`` of the whole clip (of a stream: so far). Everything
            more than 8 (80 dB) below is raised to that floor.
    """
    return ((np.maximum(loudness(power), maximum - 8.0) + 4.0) / 4.0).astype(np.float32)


class PowerStream:
    """Mel power of sound that comes in pieces of any length: what ``mel_power`` gives for all.

    The start is mirrored and the end followed by silence, as Whisper's feature extractor does
    for a clip that is shorter than its padding.
    """

    def __init__(self, bins: int):
        self.written = 0  # samples so far
        self.frames = 0  # returned so far
        self._bins = bins
        self._samples = np.zeros(0, np.float32)  # from HISTORY before the next frame's centre
        self._mirrored = False

    def push(self, samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "bins frames"]:
        """Take the next samples; returns the frames that are now complete."""
        self.written += len(samples)
        return self._advance(samples)

    def finish(self) -> Float[np.ndarray, "bins frames"]:
        """The frames up to ``ceil(samples / 160)``, and two more.

        Those two reach back into the sound from the silence; the maximum counts them.
        """
        count = -(-self.written // HOP) + 2 if self.written else 0
        silence = count * HOP + LOOKAHEAD - self.written if count else 0
        return self._advance(np.zeros(silence, np.float32))

    def _advance(self, samples):
        self._samples = np.concatenate([self._samples, samples])
        if not self._mirrored:
            if len(self._samples) <= HISTORY:
                return np.zeros((self._bins, 0), np.float32)
            self._mirrored = True
            self._samples = np.concatenate([self._samples[HISTORY:0:-1], self._samples])
        count = (len(self._samples) - HISTORY - LOOKAHEAD) // HOP
        if count < 1:
            return np.zeros((self._bins, 0), np.float32)
        power = mel_power(self._samples[: HISTORY + count * HOP + LOOKAHEAD], self._bins)
        self._samples = self._samples[count * HOP :]
        self.frames += count
        return power


def clip_log_mel(
    samples: Float[np.ndarray, " samples"], bins: int
) -> Float[np.ndarray, "bins frames"]:
    """Log-mel spectrogram of a whole clip of any length, ``ceil(samples / 160)`` frames."""
    stream = PowerStream(bins)
    power = np.concatenate([stream.push(samples), stream.finish()], axis=1)
    if not len(samples):
        return power
    return log_mel(power[:, : -(-len(samples) // HOP)], float(loudness(power).max()))


@functools.cache
def mel_filters(bins: int) -> Float[np.ndarray, "bins frequencies"]:
    """Triangular filters from 0 to 8 kHz on Slaney's mel scale, each of the same area.

    Slaney's scale (Auditory Toolbox, 1998) is linear up to 1 kHz, 200/3 Hz to the mel, and
    logarithmic above, 27 mels to a factor of 6.4.
    """
    knee, ratio = 1000.0, np.log(6.4) / 27.0

    def to_hertz(mel):
        above = knee * np.exp(ratio * (mel - knee * 3 / 200))
        return np.where(mel < knee * 3 / 200, mel * 200 / 3, above)

    top = knee * 3 / 200 + np.log(SAMPLE_RATE / 2 / knee) / ratio
    corners = to_hertz(np.linspace(0.0, top, bins + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, FRAME // 2 + 1)
    slopes = (frequencies - corners[:, None]) / np.diff(corners, append=np.inf)[:, None]
    rising, falling = slopes[:-2], 1.0 - slopes[1:-1]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]
