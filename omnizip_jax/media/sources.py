"""Opens the sources of windows: files, URLs, devices, arrays and pushed arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from omnizip_jax.media.arrays import MediaArrays, PushSource
from omnizip_jax.media.bounded_queue import BoundedQueue, run_in_thread
from omnizip_jax.media.container import MediaFile, local_path
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.media.timeline import AudioChunk, Event, StreamEnd, shift

Source: TypeAlias = str | Path | tuple | PushSource

Item = TypeVar("Item")

PREFETCHED_EVENTS = 8  # decoded frames and audio that wait to be cut; frames are large
_READ_TIMEOUTS = 3  # timeouts after which one read of a silent source fails


@dataclasses.dataclass
class OpenedSource:
    """A source that is ready to be read.

    Attributes:
        name: for messages.
        has_video, has_audio: streams that will arrive.
        local: files and arrays, which can be read twice and never block.
        pushed: the user's program fills it, at any pace.
        device: includes a capture device.
        duration: seconds stated by a local file, if all of it is used.
        readers: iterators over all events, to be read at the same time; at their end, or once
            closed, they close the source.
        events: queue for the events.
        deferred: warnings of the readers.
        read_audio: reads all the audio once more from the start.
    """

    name: str
    has_video: bool
    has_audio: bool
    events: BoundedQueue[Event]
    local: bool = False
    pushed: bool = False
    device: bool = False
    duration: float | None = None
    readers: Sequence[Generator[Event]] = ()
    deferred: DeferredWarnings = dataclasses.field(default_factory=DeferredWarnings)
    read_audio: Callable[[], Iterator[AudioChunk]] | None = None


def open_source(
    source: Source,
    audio: Source | None,
    is_needed: Callable[[float, float], bool],
    *,
    use_video: bool,
    use_audio: bool,
    options: dict[str, str] | None,
    timeout: float | None,
    **chosen: int | None,
) -> OpenedSource:
    """Open a source, and a second one for the audio if there is one; see ``windows``.

    Local video and audio are read side by side in the order of time, however the file
    interleaves them. Other sources are read as they arrive.

    Args:
        is_needed: see ``MediaFile.decode``.
        chosen: ``video_stream`` and ``audio_stream`` of ``MediaFile``.
    """
    if isinstance(source, PushSource):
        if audio is not None:
            raise ValueError("a PushSource takes its audio by push_audio: leave out audio=")
        _check_not_chosen(chosen)
        return OpenedSource(source.name, use_video, use_audio, source.events, pushed=True)
    if audio is not None and not use_audio:
        raise ValueError("audio= names a source, but use_audio is False: drop one of them")
    sources = [s for s in (source, audio) if s is not None]
    local, deferred = all(map(is_local, sources)), DeferredWarnings()
    open_one = functools.partial(
        open_media,
        options=options,
        timeout=None if timeout is None else _READ_TIMEOUTS * timeout,
        live=not local,
        deferred=deferred,
        **chosen,
    )

    read_audio = None
    with contextlib.ExitStack() as on_error:
        first = on_error.enter_context(open_one(source, use_video, use_audio and audio is None))
        has_video, has_audio = first.has_video, first.has_audio or audio is not None
        if audio is not None:
            open_audio = functools.partial(open_one, audio, False, True)
        else:
            open_audio = functools.partial(open_one, source, use_video, use_audio)
        media = [first]
        if (has_video and has_audio) if local else (audio is not None):
            media.append(open_audio())
        on_error.pop_all()
    if local:
        streams = [(first, True)] if has_video else []
        if has_audio:
            streams.append((media[-1], False))
            read_audio = functools.partial(_read_audio, open_audio)
        events = [_decode_stream(each, video, is_needed) for each, video in streams]
        readers = [close_at_end(media, heapq.merge(*events, key=lambda event: event.start))]
    elif audio is None:
        readers = [close_at_end(media, first.decode())]
    else:
        start = functools.cache(time.monotonic)  # of the first data of either
        readers = [
            close_at_end([each], _on_clock(_decode_stream(each, video), start))
            for each, video in zip(media, (True, False), strict=True)
        ]
    return OpenedSource(
        name=first.name if audio is None else f"{first.name} with {media[-1].name}",
        has_video=has_video,
        has_audio=has_audio,
        events=BoundedQueue(PREFETCHED_EVENTS, producers=len(readers)),
        local=local,
        device=any(_device(s) is not None for s in sources),
        duration=first.duration if local and use_audio and use_video and audio is None else None,
        readers=readers,
        deferred=deferred,
        read_audio=read_audio,
    )


def open_media(
    source: Any, use_video: bool, use_audio: bool, *, timeout: float | None, **settings: Any
) -> MediaFile | MediaArrays:
    """Open one path, URL, device or tuple of arrays; ``settings`` are those of ``MediaFile``."""
    if isinstance(source, PushSource):
        raise ValueError(
            "a PushSource is a source of windows() only, and takes its audio by push_audio"
        )
    device = _device(source)
    if device is not None:
        source, name = device, ":".join(device)
    elif isinstance(source, tuple):
        _check_not_chosen(settings)
        return MediaArrays(source, use_video=use_video, use_audio=use_audio)
    elif isinstance(source, str | os.PathLike):
        name = local_path(source)
    else:
        raise ValueError(
            "expected a path, a URL, or (frames, fps, waveform, sample_rate) in a tuple, got "
            f"{type(source).__name__}"
        )
    if device is None and _is_growing(name):  # FFmpeg would begin near the end
        settings["options"] = {"live_start_index": "0"} | (settings.get("options") or {})
        settings["deferred"].add(f"{name}: has no end mark, and is read until nothing more comes")
    open_file = functools.partial(
        MediaFile, source, use_video=use_video, use_audio=use_audio, timeout=timeout, **settings
    )
    return open_file() if is_local(source) else run_in_thread(open_file, name)


def is_local(source: Any) -> bool:
    """Whether it is a complete file or arrays, which never block."""
    if isinstance(source, tuple):
        return _device(source) is None
    if not isinstance(source, str | os.PathLike):
        return False
    path = local_path(source)
    return os.path.isfile(path) and not _is_growing(path)


def _is_growing(path: str) -> bool:
    """Whether it is an HLS playlist without an end mark, which FFmpeg reads again and again."""
    if not os.path.isfile(path):  # reading a pipe would take its data
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(b"#EXTM3U")) == b"#EXTM3U":
            text = file.read()
            return b"#EXTINF" in text and b"#EXT-X-ENDLIST" not in text
    return False


def close_at_end(media, events: Iterator[Item]) -> Generator[Item]:
    """The same events; at their end, or once closed, the media are closed."""
    with contextlib.ExitStack() as stack:
        for each in media:
            stack.enter_context(each)
        yield from events


def _device(source) -> tuple[str, str] | None:
    """(FFmpeg's input format, name), if it is a device."""
    if isinstance(source, tuple) and [type(part) for part in source] == [str, str]:
        return source
    if isinstance(source, str) and source.startswith("device:") and not os.path.exists(source):
        kind, _, name = source.removeprefix("device:").partition(":")
        if not (kind and name):
            raise ValueError(f'a device is written "device:v4l2:/dev/video0", got {source!r}')
        return kind, name
    return None


def _check_not_chosen(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a stream is chosen of arrays."""
    for name in ("video_stream", "audio_stream"):
        if settings.get(name) is not None:
            raise ValueError(f"{name} chooses a stream of a file; arrays have one of each: drop it")


def _decode_stream(media, video: bool, is_needed=None) -> Iterator[Event]:
    """The frames, or the audio, and then their end."""
    start = 0.0
    for event in media.decode(is_needed, video=video, audio=not video):
        start = event.start
        yield event
    yield StreamEnd(start, video)


def _read_audio(open_audio) -> Iterator[AudioChunk]:
    with open_audio() as media:
        yield from media.decode(video=False)


def _on_clock(events: Iterator[Event], start: Callable[[], float]) -> Iterator[Event]:
    """Move all events so that the first one is now, in seconds since ``start``."""
    offset: float | None = None
    for event in events:
        if offset is None:
            first = start()
            offset = time.monotonic() - first - event.start
        yield shift(event, offset)
