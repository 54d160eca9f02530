"""A part of a clip: its pictures and sound between two times, on a clock of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from omnizip_jax.media.arrays import NUMBER
from omnizip_jax.media.clock import Picture, Sound
from omnizip_jax.media.sound import SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """From ``start`` to ``end``, seconds of the source; None reads on to its end.

    Raises:
        ValueError: times that are none, or that leave nothing.
    """

    start: float = 0.0
    end: float | None = None

    def __post_init__(self):
        if not (
            isinstance(self.start, NUMBER)
            and math.isfinite(self.start)
            and self.start >= 0
            and (self.end is None or (isinstance(self.end, NUMBER) and self.start < self.end))
        ):
            raise ValueError(
                "start and end are seconds from the start of the clip, with start before end, got "
                f"{self.start!r} and {self.end!r}"
            )

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.end is None

    def length(self, duration: float) -> float:
        """What is left of so many seconds."""
        return max(0.0, min(duration, self._end) - self.start)

    def wants(self, wants: Any) -> Any:
        """A question about times of the excerpt, for times of the source."""
        return lambda start, end: wants(start - self.start, min(end, self._end) - self.start)

    def cut(
        self, events: Iterable[Picture | Sound], kinds: Iterable[type]
    ) -> Iterator[Picture | Sound]:
        """The events in between, at their times of the excerpt.

        A picture is on display until the next one comes, whatever its own end says: the last one
        before the start is the first one of the excerpt.

        Args:
            kinds: what will come; reading ends once all of it is beyond the end.
        """
        if self.whole:
            yield from events
            return
        coming, shown = set(kinds), None
        for event in events:
            if event.start >= self._end:
                coming.discard(type(event))
                if not coming:
                    break
            elif isinstance(event, Sound):
                yield from self._sound(event)
            elif event.start <= self.start:
                shown = event
            else:
                if shown is not None:
                    yield self._picture(shown, event.start)
                    shown = None
                yield self._picture(event, event.end)
        if shown is not None and shown.end > self.start:
            yield self._picture(shown, shown.end)

    @property
    def _end(self) -> float:
        return math.inf if self.end is None else self.end

    def _picture(self, picture: Picture, end: float) -> Picture:
        start = max(0.0, picture.start - self.start)
        return dataclasses.replace(picture, start=start, end=min(end, self._end) - self.start)

    def _sound(self, sound: Sound) -> Iterator[Sound]:
        first = max(0, round((self.start - sound.start) * SAMPLE_RATE))
        last = len(sound.samples)
        if self.end is not None:
            last = min(last, round((self.end - sound.start) * SAMPLE_RATE))
        if first < last:
            start = sound.start + first / SAMPLE_RATE - self.start
            yield Sound(max(0.0, start), sound.samples[first:last])

    def __str__(self) -> str:
        return f"from {self.start:g} s to {'its end' if self.end is None else f'{self.end:g} s'}"
