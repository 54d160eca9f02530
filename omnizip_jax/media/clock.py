"""The window clock: which picture stands for which moment, and where sound belongs.

Everything here is incremental, so that a file and a live stream are cut in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.sound import SAMPLE_RATE

_TICK = 1e-3  # s; containers round timestamps, Matroska to the millisecond
JITTER = 0.05  # s; smaller disagreements of a sound's timestamps
LIMIT = 3600.0  # s; a longer jump between timestamps is a fault
_LOUDEST = 1e3  # 60 dB above full scale; beyond, the spectrogram's power leaves float32


@dataclasses.dataclass(frozen=True)
class Picture:
    """A frame and the time it is on display, in seconds since the start of the clip.

    ``render(height, width)`` gives its pixels in that size, uint8 RGB.
    """

    start: float
    end: float
    height: float  # as displayed: upright, square pixels
    width: float
    render: Callable[[int, int], UInt8[np.ndarray, "height width 3"]]


@dataclasses.dataclass(frozen=True)
class Sound:
    """Mono sound at 16 kHz and the time of its first sample."""

    start: float
    samples: Float[np.ndarray, " samples"]


@dataclasses.dataclass(frozen=True)
class End:
    """No more pictures, or no more sound, after this time."""

    start: float
    video: bool


class FrameSampler:
    """Picks the picture on display in the middle of each interval of ``spacing`` seconds.

    Sample i stands for [i, i + 1) * spacing. An interval whose middle is before the first
    picture or after the last one has no sample; a video too short to reach any middle has one.
    """

    def __init__(self, spacing: float):
        self.spacing = spacing
        self.decided = 0  # intervals before this one have their picture, or never get one
        self._shown: Picture | None = None
        self._empty = True

    def wants(self, start: float, end: float) -> bool:
        """Whether a picture on display from ``start`` to ``end`` is picked at all."""
        return self.intervals(start) < self.intervals(end)

    def intervals(self, time: float) -> int:
        """Number of intervals whose middle lies before ``time``."""
        return max(0, int(np.ceil((time - _TICK) / self.spacing - 0.5)))

    def push(self, picture: Picture) -> list[tuple[int, Picture]]:
        """Take the next picture; returns the (index, picture) that are now decided."""
        if self._shown is None:
            self.decided = self.intervals(picture.start)
        else:
            check_jump(self._shown.start, picture.start, "video")
        decided = self._hold_until(picture.start)
        self._shown = picture
        return decided

    def finish(self) -> list[tuple[int, Picture]]:
        """The last samples, when no picture follows."""
        if self._shown is None:
            return []
        check_jump(self._shown.start, self._shown.end, "video")
        decided = self._hold_until(self._shown.end)
        return decided if decided or not self._empty else [(self.decided, self._shown)]

    def _hold_until(self, time: float) -> list[tuple[int, Picture]]:
        first, self.decided = self.decided, max(self.decided, self.intervals(time))
        self._empty = self._empty and first == self.decided
        return [(index, self._shown) for index in range(first, self.decided) if self._shown]


def continue_sound(
    written: int, sound: Sound, jitter: float = JITTER
) -> Float[np.ndarray, " samples"]:
    """What to append to ``written`` samples so that ``sound`` lies at its own time.

    A gap becomes silence, an overlap is cut, jitter below 50 ms is left alone. The first sound
    has nothing to be torn from, and lies at its own time exactly.

    Args:
        jitter: another limit, seconds.

    Raises:
        ValueError: timestamps jump by more than an hour, or samples are of no use.
    """
    check_samples(sound.samples)
    gap = sound.start - written / SAMPLE_RATE
    check_jump(written / SAMPLE_RATE, sound.start, "sound")
    missing = round(gap * SAMPLE_RATE)
    if written == 0:
        jitter = 0.0
    if missing < 0 and gap < -jitter:
        return sound.samples[-missing:]
    if gap > jitter:
        return np.concatenate([np.zeros(missing, np.float32), sound.samples])
    return sound.samples


def check_samples(samples: Float[np.ndarray, " samples"]) -> None:
    """Raise ValueError if samples are NaN, infinite, or far too loud."""
    if not (np.abs(samples) <= _LOUDEST).all():
        raise ValueError(
            "the sound holds NaN, infinite or absurdly large samples: expected floats within "
            "-1..1; divide integers by their range"
        )


def check_jump(before: float, after: float, what: str) -> None:
    """Raise ValueError if the times are more than an hour apart."""
    if abs(after - before) > LIMIT:
        raise ValueError(f"timestamps of the {what} jump from {before:.1f} s to {after:.1f} s")


def grid_position(grid: int, seconds_per_grid: float, positions_per_second: int) -> int:
    """Position ids between the start of the clip and a grid."""
    return int(grid * seconds_per_grid * positions_per_second + 1e-6)
