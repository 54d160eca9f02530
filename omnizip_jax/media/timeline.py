"""The clip's clock: timed events, frame sampling, audio alignment, timestamp repair, excerpts.

Everything here is incremental, so that files and live streams are cut in the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from omnizip_jax.media.validation import MAX_GAP, NUMBER, check_samples

SAMPLE_RATE = 16_000
JITTER = 0.05  # s; smaller disagreements of audio timestamps are ignored

_TICK = 1e-3  # s; containers round timestamps, Matroska to the millisecond
_RESTART = 0.25  # s back that are a restart of the clock
_DISCONTINUITY = 10.0  # s forwards, as in ffmpeg's -dts_delta_threshold
_LOOKAHEAD = SAMPLE_RATE  # samples that must confirm a change of the timestamps' offset


@dataclasses.dataclass(frozen=True)
class VideoFrame:
    """A video frame and its display time, in seconds since the start of the clip.

    ``render(height, width)`` returns its pixels in that size, uint8 RGB.
    """

    start: float
    end: float
    height: float  # as displayed: upright, square pixels
    width: float
    render: Callable[[int, int], UInt8[np.ndarray, "height width 3"]]


@dataclasses.dataclass(frozen=True)
class AudioChunk:
    """Mono audio at 16 kHz and the time of its first sample."""

    start: float
    samples: Float[np.ndarray, " samples"]


@dataclasses.dataclass(frozen=True)
class StreamEnd:
    """End of the video or of the audio stream; ``start`` is the time of its last event."""

    start: float
    video: bool


Event: TypeAlias = VideoFrame | AudioChunk | StreamEnd


class FrameSampler:
    """Selects the frame on display in the middle of each interval of ``spacing`` seconds.

    Sample i stands for [i, i + 1) * spacing. An interval whose middle is before the first frame
    or after the last one has no sample; a video too short to reach any middle has one.
    """

    def __init__(self, spacing: float):
        self.spacing = spacing
        self.decided = 0  # intervals before this one have their frame, or never get one
        self._current: VideoFrame | None = None
        self._empty = True

    def needs(self, start: float, end: float) -> bool:
        """Whether a frame on display from ``start`` to ``end`` is selected at all."""
        return self.intervals_before(start) < self.intervals_before(end)

    def intervals_before(self, time: float) -> int:
        """Number of intervals whose middle lies before ``time``."""
        return max(0, int(np.ceil((time - _TICK) / self.spacing - 0.5)))

    def push(self, frame: VideoFrame) -> list[tuple[int, VideoFrame]]:
        """Add the next frame; returns the (index, frame) pairs that are now decided."""
        if self._current is None:
            self.decided = self.intervals_before(frame.start)
        else:
            check_jump(self._current.start, frame.start, "video")
        samples = self._hold_until(frame.start)
        self._current = frame
        return samples

    def finish(self) -> list[tuple[int, VideoFrame]]:
        """Return the last samples, when no frame follows."""
        if self._current is None:
            return []
        check_jump(self._current.start, self._current.end, "video")
        samples = self._hold_until(self._current.end)
        return samples if samples or not self._empty else [(self.decided, self._current)]

    def _hold_until(self, time: float) -> list[tuple[int, VideoFrame]]:
        first, self.decided = self.decided, max(self.decided, self.intervals_before(time))
        self._empty = self._empty and first == self.decided
        return [(index, self._current) for index in range(first, self.decided) if self._current]


def align_audio(
    written: int, chunk: AudioChunk, jitter: float = JITTER
) -> Float[np.ndarray, " samples"]:
    """Samples to append to ``written`` samples so that ``chunk`` lies at its own time.

    A gap becomes silence, an overlap is cut, jitter of up to ``jitter`` seconds is ignored. The
    first chunk of a stream lies at its own time exactly.

    Raises:
        ValueError: timestamps jump by more than an hour, or samples are not finite.
    """
    check_samples(chunk.samples)
    gap = chunk.start - written / SAMPLE_RATE
    check_jump(written / SAMPLE_RATE, chunk.start, "audio")
    missing = round(gap * SAMPLE_RATE)
    if written == 0:
        jitter = 0.0
    if missing < 0 and gap < -jitter:
        return chunk.samples[-missing:]
    if gap > jitter:
        return np.concatenate([np.zeros(missing, np.float32), chunk.samples])
    return chunk.samples


def check_jump(before: float, after: float, stream: str) -> None:
    """Raise ValueError if two timestamps are more than an hour apart."""
    if abs(after - before) > MAX_GAP:
        raise ValueError(f"timestamps of the {stream} jump from {before:.1f} s to {after:.1f} s")


class ContinuousClock:
    """Offsets that keep time continuous where the clock of a container restarts.

    In joined transport streams and in broadcasts, timestamps go back, or jump. The first stream
    that does so begins a new section after all that came before; the others follow into the same
    section when they restart too, so that audio and video stay in step.

    Args:
        jumps: whether the container's clock may also jump forwards, as in transport streams, which
            state times of decoding; more than 10 s to a key frame are a jump.
    """

    def __init__(self, jumps: bool):
        self._jump = _DISCONTINUITY if jumps else math.inf
        self._offsets = [0.0]  # of each section
        self._section: dict[int, int] = {}  # of each stream
        self._least: dict[int, float] = {}  # time of each stream below which it restarts
        self._last: dict[int, float] = {}  # time of each stream's last packet
        self._end = 0.0  # of everything so far, on the clock that goes on

    def offset(
        self,
        stream: int,
        time: float,
        start: float,
        duration: float,
        *,
        audio: bool,
        key: bool,
    ) -> float:
        """Seconds to add to the time of a stream's next packet.

        Args:
            stream: its index.
            time: of decoding if it is known, else of display, seconds.
            start, duration: of display.
            audio: the packet goes back only if it does even without the gaps so far, which are
                wrong in Ogg files with empty packets.
            key: whether decoding can begin here, as all audio and joined videos do. Other frames
                may follow a long pause, or ones that are shown later.
        """
        section = self._section.setdefault(stream, len(self._offsets) - 1)
        least = self._least.get(stream, time)
        latest = max(
            (t for s, t in self._last.items() if self._section[s] == section), default=time
        )
        goes_back = time < least - _RESTART and (key or self._jump < math.inf)
        if goes_back or (key and time > latest + self._jump):
            section = min(
                range(section + 1, len(self._offsets)),
                key=lambda other: abs(start + self._offsets[other] - self._end),
                default=len(self._offsets),
            )
            if section == len(self._offsets):
                self._offsets.append(self._end - start)
            self._section[stream], least = section, time
        self._last[stream] = time
        self._least[stream] = min(least, time) + duration if audio else max(least, time)
        self._end = max(self._end, start + duration + self._offsets[section])
        return self._offsets[section]


def grid_position(grid: int, seconds_per_grid: float, positions_per_second: int) -> int:
    """Position ids between the start of the clip and a grid: transformers' product in float32."""
    seconds = np.float32(grid) * np.float32(seconds_per_grid)
    return int(seconds * np.float32(positions_per_second))


def shift(event: Event, seconds: float) -> Event:
    """Move an event in time."""
    times = {name: vars(event)[name] + seconds for name in ("start", "end") if name in vars(event)}
    return dataclasses.replace(event, **times)


class TimestampRepair:
    """Joins audio chunks without gaps, unless all timestamps of the next second show a gap.

    Let ``offset`` be the difference between a chunk's timestamp and its time if nothing was ever
    missing. A chunk is moved, later or earlier, when its own offset and those of the following
    second all exceed the current offset, in the same direction, by more than 50 ms. Offsets that
    appear only now and then are faults of the container: Ogg derives timestamps from packets that
    may be empty.
    """

    def __init__(self):
        self._pending: deque[tuple[AudioChunk, int]] = deque()  # and the samples before each
        self._received = 0  # samples
        self._offset = 0.0  # current, seconds

    def push(self, chunk: AudioChunk) -> Iterator[AudioChunk]:
        """Add the next chunk; yields those whose time is now decided."""
        self._pending.append((chunk, self._received))
        self._received += len(chunk.samples)
        while self._pending and self._received - self._pending[0][1] > _LOOKAHEAD:
            yield self._release()

    def finish(self) -> Iterator[AudioChunk]:
        """Yield the rest, when no chunk follows."""
        while self._pending:
            yield self._release()

    def _release(self) -> AudioChunk:
        before = self._pending[0][1] / SAMPLE_RATE
        jitter = JITTER if before + self._offset > 0 else 0.0  # no jitter before the first audio
        own, *others = (
            chunk.start - samples / SAMPLE_RATE - self._offset for chunk, samples in self._pending
        )
        if abs(own) > jitter and all(other * own > 0 and abs(other) > jitter for other in others):
            self._offset += own
        chunk, _ = self._pending.popleft()
        return dataclasses.replace(chunk, start=before + self._offset)


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """The part of a clip from ``start`` to ``end`` seconds, on a clock of its own.

    Raises:
        ValueError: times that are not numbers, or an empty interval.
    """

    start: float = 0.0
    end: float | None = None  # None: to the end of the clip

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
    def is_whole(self) -> bool:
        return self.start == 0 and self._end == math.inf

    def length(self, duration: float) -> float:
        """Length of the excerpt of a clip of ``duration`` seconds."""
        return max(0.0, min(duration, self._end) - self.start)

    def on_source_clock(
        self, is_needed: Callable[[float, float], bool]
    ) -> Callable[[float, float], bool]:
        """Convert a predicate on times of the excerpt into one on times of the source."""
        return lambda start, end: is_needed(start - self.start, min(end, self._end) - self.start)

    def select(
        self, events: Iterable[VideoFrame | AudioChunk], kinds: Iterable[type]
    ) -> Iterator[VideoFrame | AudioChunk]:
        """Yield the events inside the excerpt, at their times of the excerpt.

        A frame is on display until the next one appears, whatever its own end says: the last one
        before the start is the first one of the excerpt, and the last one before the end is held.

        Args:
            events: in the order of time, by kind.
            kinds: event types of the source; reading ends once all of them are past the end.
        """
        if self.is_whole:
            yield from events
            return
        open_kinds, current = set(kinds), None
        for event in events:
            if isinstance(event, VideoFrame):
                if current is not None and event.start > self.start:
                    yield self._clip_frame(current, event.start)
                current = event if event.start < self._end else None
            elif event.start < self._end:
                yield from self._clip_audio(event)
            if event.start >= self._end:
                open_kinds.discard(type(event))
                if not open_kinds:
                    break
        if current is not None and current.end > self.start:
            yield self._clip_frame(current, current.end)

    @property
    def _end(self) -> float:
        return math.inf if self.end is None else self.end

    def _clip_frame(self, frame: VideoFrame, end: float) -> VideoFrame:
        start = max(0.0, frame.start - self.start)
        return dataclasses.replace(frame, start=start, end=min(end, self._end) - self.start)

    def _clip_audio(self, chunk: AudioChunk) -> Iterator[AudioChunk]:
        first = max(0, round((self.start - chunk.start) * SAMPLE_RATE))
        last = len(chunk.samples)
        last = round(min(last, (self._end - chunk.start) * SAMPLE_RATE))
        if first < last:
            start = chunk.start + first / SAMPLE_RATE - self.start
            yield AudioChunk(max(0.0, start), chunk.samples[first:last])

    def __str__(self) -> str:
        end = f"{self.end:g} s" if math.isfinite(self._end) else "its end"
        return f"from {self.start:g} s to {end}"
