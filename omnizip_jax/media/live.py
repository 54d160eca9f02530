"""Windows as they arrive, from a file, a URL, a capture device or the user's own program."""

from __future__ import annotations

import contextlib
import functools
import numbers
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from omnizip_jax.config import WindowSpec, check_flags, check_spec
from omnizip_jax.media.assemble import Assembler
from omnizip_jax.media.bounded_queue import Channel, Closed, fill
from omnizip_jax.media.clock import FrameSampler
from omnizip_jax.media.container import note_if_short
from omnizip_jax.media.live_sound import largest_loudness
from omnizip_jax.media.sources import Opened, Source, check_timeout, open_source
from omnizip_jax.types import Window

_JOIN = 2.0  # s that ``close`` waits; a thread caught in a read ends when that returns or fails


def windows(
    source: Source,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    *,
    use_audio: bool = True,
    use_video: bool = True,
    sound: Source | None = None,
    options: dict[str, str] | None = None,
    timeout: float | None = 10.0,
    realtime: bool = False,
    two_pass: bool = True,
    queue: int = 4,
    when_slow: Literal["wait", "skip"] | None = None,
) -> WindowStream:
    """The windows of a source, one by one, as they arrive.

        with windows("rtsp://camera/stream") as stream:
            for window in stream:
                ...

    Window j covers ``spec.seconds`` from ``j * spec.seconds``, whatever comes or does not come:
    the clock decides. It is given out when picture and sound have both passed its end (sound
    needs 2.5 ms more). Slots for which nothing came are masked; what comes for a window that has
    been given out is dropped and counted.

    A local file or a clip in memory gives exactly the windows of ``load_clip``. From all other
    sources the sound's dynamic range is not known beforehand and a running maximum takes its
    place; ``docs/streaming.md`` says how far that is off.

    Args:
        source: path; URL; capture device as ("v4l2", "/dev/video0") or
            "device:v4l2:/dev/video0", with the name of any of FFmpeg's input formats; arrays
            (frames, fps, waveform, sample rate) as for ``load_clip``; or a ``PushSource``.
        spec: shape of the windows.
        use_audio, use_video: False leaves that stream out.
        sound: a second path, URL or device, whose sound is used in place of the first one's: the
            microphone next to a camera, ("alsa", "default"). Unless both are local, their clocks
            are set by the moment at which each gives its first data.
        options: FFmpeg's, for opening: {"video_size": "1280x720"}, {"rtsp_transport": "tcp"}.
        timeout: seconds. Whenever nothing at all comes for so long while a window is waited for,
            that window is given out as it is. When only picture or only sound comes and is so
            far past the end of a window, that window is given out without the other, which is
            not waited for again until it is back. With a ``PushSource``, which may be filled at
            any pace, "so far" is the time that a consumer has waited for the other. A device or
            URL that is silent for three times as long is an error. None waits for ever. Local
            files are always read to the end.
        realtime: give each window out no earlier than a camera would, ``spec.seconds`` apart,
            from the moment at which the first one is asked for.
        two_pass: read the sound of a local file twice, for its maximum first. That takes about
            1 % of its duration before the first window; False starts at once, with the running
            maximum.
        queue: windows made ahead.
        when_slow: what happens when the queue is full. "wait" lets the source wait; "skip" drops
            the oldest window and counts it. By default devices and ``realtime`` skip, all else
            waits. For a live URL, choose "skip".

    Returns:
        An iterator of ``Window`` with numpy leaves and no leading axis.

    Raises:
        ValueError: the source cannot be opened or holds nothing of what was asked for, or an
            option is wrong. While iterating: reading fails, or a picture or sound is of no use.
    """
    check_spec(spec)
    check_flags(use_audio=use_audio, use_video=use_video, realtime=realtime, two_pass=two_pass)
    if not (use_audio or use_video):
        raise ValueError("use_audio and use_video are both False: nothing would be left")
    if when_slow not in (None, "wait", "skip"):
        raise ValueError(f'when_slow must be "wait" or "skip", got {when_slow!r}')
    if not isinstance(queue, numbers.Integral) or queue < 1:
        raise ValueError(f"queue must be a positive number of windows, got {queue!r}")
    check_timeout(timeout)

    sampler = FrameSampler(spec.seconds / spec.frames)
    opened = open_source(
        source,
        sound,
        sampler.wants,
        use_video=use_video,
        use_audio=use_audio,
        options=options,
        timeout=timeout,
    )
    assembler = Assembler(
        spec,
        has_video=opened.has_video,
        has_audio=opened.has_audio,
        lead=None if opened.local or opened.pushed else timeout,
    )
    skip = when_slow == "skip" or (when_slow is None and (realtime or opened.device))
    out: Channel[tuple[int, Window]] = Channel(queue, skip=skip)
    first_pass = None
    if two_pass and opened.sounds is not None:
        first_pass = functools.partial(
            largest_loudness, _until_closed(opened.sounds(), out), spec.mel_bins
        )
    cut = _cut(opened, assembler, out, None if opened.local else timeout, first_pass)
    numbered = _numbered(cut, opened.events, out, spec.seconds if realtime else 0)
    return WindowStream(opened, assembler, out, numbered, spec.seconds)


class WindowStream:
    """Iterator over the windows of a source; made by ``windows``.

    Use it as a context manager, or ``close`` it: that ends its threads and closes the source. The
    end of the source, an error, Ctrl-C while it waits, and letting go of it do so too.

    Attributes:
        name: of the source.
        has_video, has_audio: streams that the source announced and that are in use.
        emitted: windows given to the consumer.
        time: start of the last one given, in seconds of the stream; None before the first.
    """

    def __init__(
        self,
        opened: Opened,
        assembler: Assembler,
        out: Channel[tuple[int, Window]],
        numbered: Generator[tuple[int, Window]],
        seconds: int,
    ):
        self.name = opened.name
        self.has_video, self.has_audio = opened.has_video, opened.has_audio
        self.emitted = 0
        self.time: float | None = None
        self._assembler, self._out, self._seconds = assembler, out, seconds
        self._events, self._notes = opened.events, opened.notes
        # The threads know nothing of this object, so that it can be let go of.
        self._threads = [fill(opened.events, reader, opened.name) for reader in opened.readers]
        self._threads.append(fill(out, numbered, opened.name))
        weakref.finalize(self, _release, opened.events, out)
        for thread in self._threads:
            thread.start()

    @property
    def skipped(self) -> int:
        """Windows dropped because the consumer was too slow."""
        return self._out.skipped

    @property
    def incomplete(self) -> int:
        """Windows given out without waiting any longer for missing picture or sound."""
        return self._assembler.incomplete

    @property
    def late_frames(self) -> int:
        """Pictures dropped because they came after their window had been given out."""
        return self._assembler.late_frames

    @property
    def late_sound(self) -> float:
        """Seconds of sound dropped for that reason."""
        return self._assembler.late_sound

    def __iter__(self) -> WindowStream:
        return self

    def __next__(self) -> Window:
        try:
            index, window = self._out.get()
            self._notes.tell()
        except Closed:
            self.close()
            self._notes.tell()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise
        self.emitted += 1
        self.time = float(index * self._seconds)
        return window

    def __enter__(self) -> WindowStream:
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End the threads and close the source. May be called twice."""
        _release(self._events, self._out)
        for thread in self._threads:
            thread.join(_JOIN)


def _release(*channels: Channel) -> None:
    for channel in channels:
        channel.close()


def _until_closed(items: Iterator, channel: Channel) -> Iterator:
    for item in items:
        if channel.closed:
            raise Closed
        yield item


def _cut(
    opened: Opened,
    assembler: Assembler,
    out: Channel,
    timeout: float | None,
    first_pass: Callable[[], float] | None,
) -> Iterator[Window]:
    """Windows from events; after ``timeout`` without events, the window that is waited for."""
    if first_pass is not None:
        assembler.maximum = first_pass()
    wait, silent, failed = timeout, True, None
    torn = _Torn(assembler, out, timeout) if opened.pushed and timeout is not None else None
    while True:
        try:
            event = opened.events.get(wait if torn is None else torn.at_most(wait))
        except TimeoutError:
            assert timeout is not None
            if torn is not None and torn.overdue():
                yield from assembler.give_up()
                continue
            wait = timeout - out.wanted()  # a consumer that is busy itself is in no hurry
            if wait <= 0 and silent:
                raise ValueError(
                    f"nothing has come for {timeout:g} s; give a longer timeout if it needs more "
                    "time to start (None waits for ever)"
                ) from None
            if wait <= 0:
                yield assembler.emit()
                wait = timeout
        except Closed:
            break
        except ValueError as error:  # of the reader: what has come is still given out
            failed = error
            break
        else:
            wait, silent = timeout, False
            yield from assembler.push(event)
    if failed is None or not silent:
        yield from assembler.finish()
    if failed is not None:
        raise failed
    if not out.closed:
        note_if_short(opened.notes, opened.name, assembler.duration, opened.duration)


class _Torn:
    """How long a window of pushed media has had one stream and waited for the other.

    What is pushed has no pace: a minute of pictures, then a minute of sound. So it is not the
    clock of the pictures that decides, but how long a consumer has gone without its window, once
    all that was pushed has been looked at. Where windows are skipped nobody waits for any, and the
    time since the first stream was there counts, or what is held would grow without end.
    """

    def __init__(self, assembler: Assembler, out: Channel, timeout: float):
        self._assembler, self._out, self._timeout = assembler, out, timeout
        self._window, self._since = -1, 0.0

    def at_most(self, wait: float | None) -> float | None:
        """Seconds to wait for the next event."""
        left = self._left()
        return wait if left is None or wait is None else max(0.0, min(wait, left))

    def overdue(self) -> bool:
        left = self._left()
        return left is not None and left <= 0

    def _left(self) -> float | None:
        if not self._assembler.torn:
            self._window = -1
            return None
        if self._window != self._assembler.emitted:
            self._window, self._since = self._assembler.emitted, time.monotonic()
        waited = time.monotonic() - self._since
        return self._timeout - (waited if self._out.skips else min(waited, self._out.wanted()))


def _numbered(
    cut: Iterator[Window], events: Channel, out: Channel, pace: int
) -> Generator[tuple[int, Window]]:
    """Windows with their index; one every ``pace`` seconds if that is not 0.

    The pace begins when the first window is asked for: what is done before costs no window.
    """
    start = None
    with contextlib.closing(events):
        for index, window in enumerate(cut):
            if pace:
                if start is None:
                    out.wait_asked()
                    start = time.monotonic()
                out.wait_closed(start + (index + 1) * pace - time.monotonic())
            yield index, window
