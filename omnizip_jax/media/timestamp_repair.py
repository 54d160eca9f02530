"""The times of a file's sounds, where its timestamps jump about."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator

from omnizip_jax.media.clock import JITTER, Sound
from omnizip_jax.media.sound import SAMPLE_RATE

_AHEAD = SAMPLE_RATE  # samples that are heard before a timestamp is believed


class SteadySounds:
    """Puts sound after sound, unless all timestamps of the next second tell of a gap.

    Let ``offset`` be the difference between a sound's timestamp and the time at which it would
    lie if nothing was ever missing. Sound is moved, to later or to earlier, when its own offset
    and those of the following second all lie beyond the offset so far, by more than 50 ms. What
    lies beside it only now and then is a fault of the container: Ogg derives timestamps from
    packets that may be empty.
    """

    def __init__(self):
        self._held: deque[tuple[Sound, int]] = deque()  # and the samples before each
        self._heard = 0  # samples
        self._offset = 0.0  # in use, seconds

    def push(self, sound: Sound) -> Iterator[Sound]:
        """Take the next sound; yields those whose time is now decided."""
        self._held.append((sound, self._heard))
        self._heard += len(sound.samples)
        while self._heard - self._held[0][1] > _AHEAD:
            yield self._release()

    def finish(self) -> Iterator[Sound]:
        """The rest, when no sound follows."""
        while self._held:
            yield self._release()

    def _release(self) -> Sound:
        before = self._held[0][1] / SAMPLE_RATE
        started = before + self._offset > 0  # where nothing has been heard, nothing is torn
        jitter = JITTER if started else 0.0
        own = self._beyond(0)
        if abs(own) > jitter and all(
            self._beyond(i) * own > 0 and abs(self._beyond(i)) > jitter
            for i in range(1, len(self._held))
        ):
            self._offset += own
        sound, _ = self._held.popleft()
        return dataclasses.replace(sound, start=before + self._offset)

    def _beyond(self, index: int) -> float:
        """Offset of a sound that is held, less the offset in use."""
        sound, before = self._held[index]
        return sound.start - before / SAMPLE_RATE - self._offset
