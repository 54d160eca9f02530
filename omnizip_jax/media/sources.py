"""Opens what ``windows`` is given, and says how its pictures and sounds are to be read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from omnizip_jax.media.arrays import NUMBER, MediaArrays
from omnizip_jax.media.bounded_queue import Channel, apart
from omnizip_jax.media.clock import End, Picture, Sound
from omnizip_jax.media.container import MediaFile, local_path
from omnizip_jax.media.deferred_warnings import Notes
from omnizip_jax.media.push import PushSource

Source: TypeAlias = str | Path | tuple | PushSource
Event: TypeAlias = Picture | Sound | End

Item = TypeVar("Item")

EVENTS = 8  # decoded pictures and sounds that wait to be cut; pictures are large
_GIVE_UP = 3  # timeouts after which one read of a silent source fails


@dataclasses.dataclass
class Opened:
    """A source that is ready to be read.

    Attributes:
        name: for messages.
        has_video, has_audio: streams that will come.
        local: files and arrays, which can be read twice and never make one wait.
        pushed: the user's own program fills it, at whatever pace.
        device: includes a capture device.
        duration: seconds that a local file promises to last, if all of it is used.
        readers: iterators over all events, to be read at the same time; at their end, or once
            closed, they close the source.
        events: where the events belong.
        notes: warnings of the readers.
        sounds: reads all the sound once more from the start.
    """

    name: str
    has_video: bool
    has_audio: bool
    local: bool
    pushed: bool
    device: bool
    duration: float | None
    readers: Sequence[Generator[Event]]
    events: Channel[Event]
    notes: Notes
    sounds: Callable[[], Iterator[Sound]] | None = None


def open_source(
    source: Source,
    sound: Source | None,
    wants: Callable[[float, float], bool],
    *,
    use_video: bool,
    use_audio: bool,
    options: dict[str, str] | None,
    timeout: float | None,
) -> Opened:
    """Open a source, and a second one for the sound if there is one; see ``windows``.

    Local pictures and sound are read side by side in the order of time, however the file
    interleaves them. All else is read as it comes.

    Args:
        wants: see ``MediaFile.decode``.
    """
    if isinstance(source, PushSource):
        if sound is not None:
            raise ValueError("a PushSource takes its sound by push_sound: leave out sound=")
        return Opened(
            name=source.name,
            has_video=use_video,
            has_audio=use_audio,
            local=False,
            pushed=True,
            device=False,
            duration=None,
            readers=[],
            events=source.events,
            notes=Notes(),
        )
    if sound is not None and not use_audio:
        raise ValueError("sound= names a source, but use_audio is False: drop one of them")
    given = [s for s in (source, sound) if s is not None]
    local, notes = all(map(is_local, given)), Notes()
    opened = functools.partial(
        open_media,
        options=options,
        timeout=None if timeout is None else _GIVE_UP * timeout,
        live=not local,
        notes=notes,
    )

    first = opened(source, use_video, use_audio and sound is None)
    has_video, has_audio = first.has_video, first.has_audio or sound is not None
    sounds = None
    if sound is not None:
        open_sound = functools.partial(opened, sound, False, True)
    else:
        open_sound = functools.partial(opened, source, use_video, use_audio)
    media = [first]
    if local:
        parts = [(first, True)] if has_video else []
        if has_audio:
            if has_video:
                media.append(open_sound())
            parts.append((media[-1], False))
            sounds = functools.partial(_sounds, open_sound)
        events = _in_order([_with_end(m, video, wants) for m, video in parts])
        readers = [closing_media(media, events)]
    elif sound is None:
        readers = [closing_media(media, first.decode())]
    else:
        media.append(open_sound())
        start = _Start()
        readers = [
            closing_media([m], start.shift(_with_end(m, video)))
            for m, video in zip(media, (True, False), strict=True)
        ]
    return Opened(
        name=first.name if sound is None else f"{first.name} with {media[-1].name}",
        has_video=has_video,
        has_audio=has_audio,
        local=local,
        pushed=False,
        device=any(_device(s) is not None for s in given),
        duration=first.duration if local and use_audio and use_video and sound is None else None,
        readers=readers,
        events=Channel(EVENTS, producers=len(readers)),
        notes=notes,
        sounds=sounds,
    )


def open_media(
    source: Any,
    use_video: bool = True,
    use_audio: bool = True,
    *,
    timeout: float | None,
    notes: Notes,
    options: dict[str, str] | None = None,
    live: bool = False,
) -> MediaFile | MediaArrays:
    """Open one path, URL, device or tuple of arrays; see ``MediaFile``."""
    if isinstance(source, PushSource):
        raise ValueError(
            "a PushSource stands alone, and goes to windows(): it has its own push_sound"
        )
    device = _device(source)
    if isinstance(source, tuple) and device is None:
        return MediaArrays.of(source, use_video=use_video, use_audio=use_audio)
    if device is not None:
        source, name = device, ":".join(device)
    elif isinstance(source, str | os.PathLike):
        name = local_path(source)
    else:
        raise ValueError(
            "expected a path, a URL, or (frames, fps, waveform, sample_rate) in a tuple, got "
            f"{type(source).__name__}"
        )
    local = is_local(source)
    open_file = functools.partial(
        MediaFile,
        source,
        use_video=use_video,
        use_audio=use_audio,
        options=options,
        timeout=None if local else timeout,
        live=live,
        notes=notes,
    )
    if local:
        return open_file()
    return apart(open_file, name)


def is_local(source: Any) -> bool:
    """Whether it is a file or arrays, which never make one wait."""
    if isinstance(source, tuple):
        return _device(source) is None
    return isinstance(source, str | os.PathLike) and os.path.isfile(local_path(source))


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError unless it is a time to wait."""
    if timeout is not None and not (
        isinstance(timeout, NUMBER) and math.isfinite(timeout) and timeout > 0
    ):
        raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r}")


def _device(source) -> tuple[str, str] | None:
    """(FFmpeg's input format, name), if it is a device."""
    if isinstance(source, tuple) and [type(part) for part in source] == [str, str]:
        return source
    if isinstance(source, str) and source.startswith("device:"):
        kind, _, name = source.removeprefix("device:").partition(":")
        if not (kind and name):
            raise ValueError(f'a device is written "device:v4l2:/dev/video0", got {source!r}')
        return kind, name
    return None


def closing_media(media, events: Iterator[Item]) -> Generator[Item]:
    """The events; at their end, or once closed, the media are closed."""
    with contextlib.ExitStack() as stack:
        for each in media:
            stack.enter_context(each)
        yield from events


def _in_order(parts: list[Iterator[Event]]) -> Iterator[Event]:
    return heapq.merge(*parts, key=lambda event: event.start)


def _with_end(media, video: bool, wants=None) -> Iterator[Event]:
    """The pictures, or the sounds, and that they are over."""
    start = 0.0
    for event in media.decode(wants, video=video, audio=not video):
        start = event.start
        yield event
    yield End(start, video)


def _sounds(open_sound) -> Iterator[Sound]:
    with open_sound() as media:
        yield from media.decode(video=False)


class _Start:
    """One clock for several devices: each starts when its first data arrives."""

    def __init__(self):
        self._lock = threading.Lock()
        self._start: float | None = None

    def shift(self, events: Iterator[Event]) -> Iterator[Event]:
        by: float | None = None
        for event in events:
            if by is None:
                by = self._elapsed() - event.start
            yield dataclasses.replace(event, **_moved(event, by))

    def _elapsed(self) -> float:
        with self._lock:
            if self._start is None:
                self._start = time.monotonic()
            return time.monotonic() - self._start


def _moved(event: Event, by: float) -> dict[str, float]:
    moved = {"start": event.start + by}
    return moved | {"end": event.end + by} if isinstance(event, Picture) else moved
