"""Windows as they arrive, from a file, a URL, a capture device or the user's own program."""

from __future__ import annotations

import contextlib
import functools
import numbers
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from omnizip_jax.media.audio import max_log_power
from omnizip_jax.media.bounded_queue import BoundedQueue, QueueClosed, producer_thread
from omnizip_jax.media.sources import OpenedSource, Source, open_source
from omnizip_jax.media.timeline import FrameSampler
from omnizip_jax.media.validation import check_selection, check_timeout, named_errors
from omnizip_jax.media.windowing import WindowAssembler
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec, check_flags, check_spec

_JOIN = 2.0  # s that ``close`` waits; a thread blocked in a read ends when that returns or fails


def windows(
    source: Source,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    *,
    use_audio: bool = True,
    use_video: bool = True,
    audio_stream: int | None = None,
    video_stream: int | None = None,
    audio: Source | None = None,
    options: dict[str, str] | None = None,
    timeout: float | None = 10.0,
    realtime: bool = False,
    two_pass: bool = True,
    queue: int = 4,
    when_slow: Literal["wait", "skip"] | None = None,
) -> WindowStream:
    """Iterate over the windows of a source as they arrive.

        with windows("rtsp://camera/stream") as stream:
            for window in stream:
                ...

    Window j covers ``spec.seconds`` from ``j * spec.seconds``, whether media arrive or not: the
    clock decides. It is emitted when video and audio have both passed its end (audio needs
    2.5 ms more). Slots without media are masked; media that arrive for a window that has been
    emitted are dropped and counted.

    A local file or a clip in memory gives exactly the windows of ``load_clip``. For all other
    sources the audio's dynamic range is not known beforehand and a running maximum takes its
    place; ``docs/sources.md`` states the deviation.

    Args:
        source: path; URL; capture device as ("v4l2", "/dev/video0") or
            "device:v4l2:/dev/video0", with the name of any of FFmpeg's input formats; arrays
            (frames, fps, waveform, sample rate) as for ``load_clip``; or a ``PushSource``.
        spec: shape of the windows.
        use_audio, use_video: False ignores that stream.
        audio_stream, video_stream: as for ``load_clip``.
        audio: a second path, URL or device, whose audio replaces that of the first one: the
            microphone next to a camera, ("alsa", "default"). Unless both are local, their clocks
            start when each delivers its first data.
        options: FFmpeg's, for opening: {"video_size": "1280x720"}, {"rtsp_transport": "tcp"}.
        timeout: seconds without data after which an incomplete window is emitted: without any,
            or without video or audio while the other is this far past its end (of a
            ``PushSource``: while a consumer waits). Three times as long without any is an error
            of a device or URL. None waits for ever. Local files are always read to the end.
        realtime: emit each window no earlier than a camera would, ``spec.seconds`` apart, from
            the moment at which the first one is requested.
        two_pass: read the audio of a local file twice, for its maximum first. That takes about
            1 % of its duration before the first window; False starts at once, with the running
            maximum.
        queue: windows made ahead.
        when_slow: when the queue is full, "wait" blocks the source; "skip" drops the oldest
            window and counts it. By default devices and ``realtime`` skip, all others wait.
            For a live URL, choose "skip".

    Returns:
        An iterator of ``Window`` with numpy leaves and no leading axis.

    Raises:
        ValueError: the source cannot be opened or has no stream that is used, or an option is
            wrong. While iterating: reading fails, or a frame or audio cannot be used.
    """
    check_spec(spec)
    check_flags(use_audio=use_audio, use_video=use_video, realtime=realtime, two_pass=two_pass)
    check_selection(use_video, use_audio)
    if when_slow not in (None, "wait", "skip"):
        raise ValueError(f'when_slow must be "wait" or "skip", got {when_slow!r}')
    if not isinstance(queue, numbers.Integral) or queue < 1:
        raise ValueError(f"queue must be a positive number of windows, got {queue!r}")
    check_timeout(timeout)

    opened = open_source(
        source,
        audio,
        FrameSampler(spec.seconds / spec.frames).needs,
        use_video=use_video,
        use_audio=use_audio,
        options=options,
        timeout=timeout,
        audio_stream=audio_stream,
        video_stream=video_stream,
    )
    assembler = WindowAssembler(
        spec,
        has_video=opened.has_video,
        has_audio=opened.has_audio,
        max_lead=None if opened.local or opened.pushed else timeout,
    )
    skip = when_slow == "skip" or (when_slow is None and (realtime or opened.device))
    out: BoundedQueue[tuple[int, Window]] = BoundedQueue(queue, drop_oldest=skip)
    first_pass = None
    if two_pass and opened.read_audio is not None:
        chunks = _until_closed(opened.read_audio(), out)
        first_pass = functools.partial(max_log_power, chunks, spec.mel_bins)
    made = _assemble(opened, assembler, out, None if opened.local else timeout, first_pass)
    numbered = _number(made, opened.events, out, spec.seconds if realtime else 0)
    return WindowStream(opened, assembler, out, numbered, spec.seconds)


class WindowStream(contextlib.AbstractContextManager["WindowStream"]):
    """Iterator over the windows of a source; made by ``windows``.

    Use it as a context manager, or ``close`` it: that ends its threads and closes the source. So
    do the end of the source, an error, Ctrl-C while it waits, and deleting the last reference.

    Attributes:
        name: of the source.
        has_video, has_audio: streams that the source announced and that are used.
        emitted: windows given to the consumer.
        time: start of the last one, in seconds of the stream; None before the first.
    """

    def __init__(
        self,
        opened: OpenedSource,
        assembler: WindowAssembler,
        out: BoundedQueue[tuple[int, Window]],
        numbered: Generator[tuple[int, Window]],
        seconds: int,
    ):
        self.name = opened.name
        self.has_video, self.has_audio = opened.has_video, opened.has_audio
        self.emitted = 0
        self.time: float | None = None
        self._assembler, self._out, self._seconds = assembler, out, seconds
        self._events, self._deferred = opened.events, opened.deferred
        # The threads hold no reference to this object, so that it can be collected.
        self._threads = [
            *(producer_thread(opened.events, reader, opened.name) for reader in opened.readers),
            producer_thread(out, numbered, opened.name),
        ]
        weakref.finalize(self, _close, opened.events, out)
        for thread in self._threads:
            thread.start()

    @property
    def skipped(self) -> int:
        """Windows dropped because the consumer was too slow."""
        return self._out.dropped

    @property
    def incomplete(self) -> int:
        """Windows emitted without waiting any longer for missing video or audio."""
        return self._assembler.incomplete

    @property
    def late_frames(self) -> int:
        """Frames dropped because they arrived after their window had been emitted."""
        return self._assembler.late_frames

    @property
    def late_audio(self) -> float:
        """Seconds of audio dropped for that reason."""
        return self._assembler.late_audio

    def __iter__(self) -> WindowStream:
        return self

    def __next__(self) -> Window:
        try:
            index, window = self._out.get()
            self._deferred.emit()
        except QueueClosed:
            self.close()
            self._deferred.emit()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise
        self.emitted += 1
        self.time = float(index * self._seconds)
        return window

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End the threads and close the source. May be called twice."""
        _close(self._events, self._out)
        for thread in self._threads:
            thread.join(_JOIN)


def _close(*queues: BoundedQueue) -> None:
    for queue in queues:
        queue.close()


def _until_closed(items: Iterator, queue: BoundedQueue) -> Iterator:
    for item in items:
        if queue.closed:
            raise QueueClosed
        yield item


def _assemble(
    opened: OpenedSource,
    assembler: WindowAssembler,
    out: BoundedQueue,
    timeout: float | None,
    first_pass: Callable[[], float] | None,
) -> Iterator[Window]:
    """Windows from events; after ``timeout`` without events, the window that is waited for."""
    if first_pass is not None:
        assembler.maximum = first_pass()
    wait, silent, failed = timeout, True, None
    timer = None
    if opened.pushed and timeout is not None:
        timer = _PartialWindowTimer(assembler, out, timeout)
    while True:
        try:
            limit = min(wait, max(0.0, timer.remaining())) if timer and wait else wait
            event = opened.events.get(limit)
        except TimeoutError:
            assert timeout is not None
            if timer is not None and timer.remaining() <= 0:
                yield from assembler.stop_waiting()
                continue
            wait = timeout - out.consumer_waited()  # a consumer that is busy itself is not waiting
            if wait <= 0 and silent:
                raise ValueError(
                    f"nothing has come for {timeout:g} s; give a longer timeout if it needs more "
                    "time to start (None waits for ever)"
                ) from None
            if wait <= 0:
                yield assembler.emit()
                wait = timeout
        except QueueClosed:
            break
        except ValueError as error:  # of a reader: windows so far are still emitted
            failed = error
            break
        else:
            wait, silent = timeout, False
            with named_errors(opened.name):
                yield from assembler.push(event)
    if failed is None or not silent:
        with named_errors(opened.name):
            yield from assembler.finish()
    if failed is not None:
        raise failed
    if not out.closed:
        opened.deferred.add_if_short(opened.name, assembler.duration, opened.duration)


class _PartialWindowTimer:
    """Time that a window of pushed media has had one stream and waited for the other.

    Pushed media have no pace: a minute of video, then a minute of audio. So the clock of the
    media does not decide, but how long a consumer has waited for its window, once all pushed
    events have been processed. Where windows are skipped no consumer waits, and the time since
    the first stream was complete counts, or the stored media would grow without bound.
    """

    def __init__(self, assembler: WindowAssembler, out: BoundedQueue, timeout: float):
        self._assembler, self._out, self._timeout = assembler, out, timeout
        self._window, self._since = -1, 0.0

    def remaining(self) -> float:
        """Seconds until the window is emitted without the other stream."""
        if not self._assembler.is_partial:
            self._window = -1
            return float("inf")
        if self._window != self._assembler.emitted:
            self._window, self._since = self._assembler.emitted, time.monotonic()
        waited = time.monotonic() - self._since
        if not self._out.drop_oldest:
            waited = min(waited, self._out.consumer_waited())
        return self._timeout - waited


def _number(
    made: Iterator[Window], events: BoundedQueue, out: BoundedQueue, pace: int
) -> Generator[tuple[int, Window]]:
    """Windows with their index; one every ``pace`` seconds if that is not 0.

    The pace starts when the first window is requested: work done before costs no window.
    """
    start = None
    with contextlib.closing(events):
        for index, window in enumerate(made):
            if pace:
                if start is None:
                    out.wait_for_first_get()
                    start = time.monotonic()
                out.sleep(start + (index + 1) * pace - time.monotonic())
            yield index, window
