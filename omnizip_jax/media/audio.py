"""Audio: resampling to mono at 16 kHz, and Whisper's log-mel spectrogram, of clips and streams.

``mel_power`` is exact on any block that includes its neighbourhood; ``log_mel`` needs one number
from the rest of the audio, its maximum. For a file it is known after one pass; a live stream uses
a running maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float

from omnizip_jax.media.timeline import SAMPLE_RATE, AudioChunk, align_audio

FRAME = 400  # samples under one Hann window
HOP = 160  # samples from one frame to the next: 100 frames a second
HISTORY = FRAME // 2  # samples a block needs before the centre of its first frame
LOOKAHEAD = FRAME // 2 - HOP  # samples it needs past its last hop: 2.5 ms

_BLOCK = 3000  # frames transformed at once; bounds memory, not results


class Resampler:
    """Converts audio frames of any rate and layout to 16 kHz mono on the clip's clock.

    The format may change between frames. Channels are averaged with equal weights, as in the
    model's training data.

    Args:
        origin: start of the clip in the frames' own time, seconds.
    """

    def __init__(self, origin: float = 0.0):
        self._origin = origin
        self._format = None
        self._resampler = av.AudioResampler()
        self._end = 0.0

    def push(self, frame: av.AudioFrame) -> Iterator[AudioChunk]:
        """Add a frame; yields the audio that is ready."""
        kind = frame.format.name, frame.layout.name, frame.sample_rate
        if kind != self._format:
            yield from self.finish()
            self._format = kind
            self._resampler = av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
        yield from self._resample(frame)

    def finish(self) -> Iterator[AudioChunk]:
        """Yield the rest, when no frame follows."""
        if self._format is not None:
            yield from self._resample(None)

    def _resample(self, frame):
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
            yield AudioChunk(start, np.ascontiguousarray(channels).mean(axis=0, dtype=np.float32))


def audio_frame(samples: Float[np.ndarray, " samples"], start: int, rate: int) -> av.AudioFrame:
    """Mono samples as a PyAV frame whose first sample is number ``start`` of the stream."""
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate, frame.pts = rate, start
    frame.time_base = Fraction(1, rate)
    return frame


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


def mel_power(
    samples: Float[np.ndarray, " samples"], bins: int
) -> Float[np.ndarray, "bins frames"]:
    """Mel power spectrogram of consecutive frames.

    Args:
        samples: mono audio at 16 kHz: ``HISTORY`` samples, 160 for each frame, ``LOOKAHEAD``
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


def log_power(power: Float[np.ndarray, "bins frames"]) -> Float[np.ndarray, "bins frames"]:
    """Decimal logarithm of the power, never below -10."""
    return np.log10(np.maximum(power, 1e-10))


def log_mel(
    power: Float[np.ndarray, "bins frames"], maximum: float
) -> Float[np.ndarray, "bins frames"]:
    """Features of the audio encoder.

    Args:
        power: from ``mel_power``.
        maximum: the largest ``log_power`` of the whole clip (of a stream: so far). Everything
            more than 8 (80 dB) below is raised to that floor.
    """
    return ((np.maximum(log_power(power), maximum - 8.0) + 4.0) / 4.0).astype(np.float32)


class MelStream:
    """Log-mel features of audio that arrives in pieces of any length.

    The power spectrogram is exactly that of the whole clip: the start is mirrored and the end
    followed by silence, as Whisper's feature extractor does for a clip that is shorter than its
    padding, and a frame waits for 40 samples (2.5 ms) past its hop. The floor of the dynamic
    range, 80 dB below the clip's maximum, may not be known yet; the maximum so far then takes its
    place. ``docs/sources.md`` states the deviation.
    """

    def __init__(self, bins: int):
        self.written = 0  # samples so far
        self.padded = False  # the last of them are silence from ``pad_silence``
        self.maximum = -np.inf  # log power of the frames taken
        self._bins, self._finished = bins, False
        self._pending: list[np.ndarray] = []  # samples not transformed yet
        self._history = np.zeros(0, np.float32)  # samples that the next frame needs
        self._mirrored = False
        self._power = np.zeros((bins, 0), np.float32)  # from frame ``_taken`` on
        self._transformed = self._taken = 0  # frames

    @property
    def frames(self) -> int:
        """Frames that are complete, from the start of the stream."""
        if self._finished:
            return -(-self.written // HOP)
        return (self.written - LOOKAHEAD) // HOP if self.written > HISTORY else 0

    def push(self, samples: Float[np.ndarray, " samples"]) -> None:
        """Append audio; see ``align_audio``."""
        if len(samples):
            self.padded = False
            self.written += len(samples)
            self._pending.append(samples)

    def pad_silence(self, sample: int) -> None:
        """Append silence up to a sample, unless audio is there or the stream is finished."""
        if not self._finished and sample > self.written:
            self.push(np.zeros(sample - self.written, np.float32))
            self.padded = True

    def finish(self) -> None:
        """End the audio, with silence for the last frames and two more.

        Those two overlap the audio; they count for the maximum alone.
        """
        if not self._finished:
            self._finished = True
            silence = (self.frames + 2) * HOP + LOOKAHEAD - self.written if self.written else 0
            self._pending.append(np.zeros(silence, np.float32))

    def take(self, end: int, maximum: float | None = None) -> Float[np.ndarray, "bins frames"]:
        """Remove and return the features from the last ``end`` to this one.

        Frames that are not complete by now are left out for good.

        Args:
            end: number of a frame.
            maximum: of the whole audio, if known (``max_log_power``).
        """
        power = self.take_power(end)
        return log_mel(power, self.maximum if maximum is None else maximum)

    def take_power(self, end: int) -> Float[np.ndarray, "bins frames"]:
        """Remove and return the mel power instead; see ``take``."""
        self._transform()
        ready = max(0, min(end, self.frames) - self._taken)
        power, self._power = self._power, self._power[:, end - self._taken :]
        self._taken = end
        loud = power if self._finished and end >= self.frames else power[:, :ready]
        self.maximum = max(self.maximum, float(log_power(loud).max(initial=-np.inf)))
        return power[:, :ready]

    def _transform(self):
        samples, self._pending = np.concatenate([self._history, *self._pending]), []
        if not self._mirrored and len(samples) > HISTORY:
            self._mirrored = True
            samples = np.concatenate([samples[HISTORY:0:-1], samples])
        count = max(0, (len(samples) - HISTORY - LOOKAHEAD) // HOP)
        self._history = samples[count * HOP :]
        if count:
            power = mel_power(samples[: HISTORY + count * HOP + LOOKAHEAD], self._bins)
            late = max(0, self._taken - self._transformed)
            self._power = np.concatenate([self._power, power[:, late:]], axis=1)
            self._transformed += count


def max_log_power(chunks: Iterable[AudioChunk], bins: int) -> float:
    """Largest ``log_power`` of all the audio: the first of a file's two passes."""
    stream, taken = MelStream(bins), 0
    for chunk in chunks:
        stream.push(align_audio(stream.written, chunk))
        if stream.written - taken > SAMPLE_RATE:  # small blocks cost more
            taken = stream.written
            stream.take_power(stream.frames)
    stream.finish()
    stream.take_power(stream.frames)
    return stream.maximum
