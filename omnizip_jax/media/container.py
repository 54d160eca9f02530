"""Files, URLs and capture devices: video and audio in one pass, on the clip's clock (PyAV)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import numbers
import os
import re
import select
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
from av.error import ExitError, FFmpegError, InvalidDataError

from omnizip_jax.media.audio import Resampler
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.media.rendering import Picture
from omnizip_jax.media.timeline import AudioChunk, ContinuousClock, TimestampRepair, VideoFrame
from omnizip_jax.media.truncated_files import is_truncated

# PyAV 18 fails on mistyped metadata without this option; PyAV 19 does not have it.
_LENIENT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
# One stream where a transport stream renumbers it; "%d" in the name of a still is no pattern.
_OPTIONS = {"merge_pmt_versions": "1", "pattern_type": "none"}
_JUMPING_CLOCK = 0x200  # FFmpeg's AVFMT_TS_DISCONT
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones ignore alpha
_REORDER = 16  # H.264 shows a frame at most 16 frames later than it is decoded


class NamedPipe:
    """A named pipe as FFmpeg reads it; no read blocks longer than ``timeout``.

    FFmpeg itself would block without end.

    Args:
        path: of the pipe.
        timeout: seconds; None waits, for a writer too.
    """

    def __init__(self, path: str, timeout: float | None):
        self.name = path
        self._timeout = timeout
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or it waits for a writer here

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, none at the end. Raises ``TimeoutError``."""
        if not select.select([self._file], [], [], self._timeout)[0]:
            raise TimeoutError
        return os.read(self._file, size)

    def close(self) -> None:
        os.close(self._file)


class MediaFile(contextlib.AbstractContextManager["MediaFile"]):
    """An open file, URL or capture device. Use as a context manager.

    Args:
        source: path, URL, or a device as (FFmpeg's input format, name).
        use_video, use_audio: False ignores that stream.
        video_stream, audio_stream: which one of its kind, from 0; None: FFmpeg's best stream.
        options: FFmpeg's, for opening it: {"video_size": "1280x720"}.
        timeout: seconds after which opening or one read fails; None waits.
        live: decode for low delay rather than for speed; timestamps are not repaired.
        deferred: collects warnings.

    Attributes:
        has_video, has_audio: streams that are used and exist.

    Raises:
        ValueError: it cannot be opened, or has no stream that is used.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | tuple[str, str],
        *,
        use_video: bool = True,
        use_audio: bool = True,
        video_stream: int | None = None,
        audio_stream: int | None = None,
        options: dict[str, str] | None = None,
        timeout: float | None = None,
        live: bool = False,
        deferred: DeferredWarnings | None = None,
    ):
        kind, file = source if isinstance(source, tuple) else (None, local_path(source))
        self.name = file if kind is None else f"{kind}:{file}"
        self._timeout, self._live = timeout, live
        self._deferred = deferred or DeferredWarnings()
        is_pipe = kind is None and Path(file).is_fifo()
        self._pipe = NamedPipe(file, timeout) if is_pipe else None
        options = _OPTIONS | (options or {})
        # Without this protocol FFmpeg looks for another one before a colon in the path.
        self._file = f"file:{file}" if os.path.exists(file) else file
        self._settings: dict[str, Any] = {"format": kind, "options": options, "timeout": timeout}
        self._settings |= _LENIENT
        with contextlib.ExitStack() as on_error:
            if self._pipe:
                on_error.callback(self._pipe.close)
            try:
                container = av.open(self._pipe or self._file, **self._settings)
            except (FFmpegError, OSError) as error:
                raise ValueError(
                    f"{self.name}: cannot be opened as video or audio: {self._reason(error)}"
                ) from error
            except ValueError as error:  # PyAV, on an unknown format
                raise ValueError(f"{self.name}: cannot be opened: {error}") from error
            self._container = on_error.enter_context(container)
            self._video = self._chosen("video", video_stream) if use_video else None
            self._audio = self._chosen("audio", audio_stream) if use_audio else None
            self.has_video, self.has_audio = self._video is not None, self._audio is not None
            self._used = [s for s in (self._video, self._audio) if s is not None]
            if not self._used:
                kinds = ["cover art" if _is_cover(s) else s.type for s in self._container.streams]
                found = ", ".join(kinds) or "nothing"
                expected = " or ".join(["video"] * use_video + ["audio"] * use_audio) or "nothing"
                raise ValueError(f"{self.name}: expected {expected}, but the file has {found}")
            self._stack = on_error.pop_all()
        self._decoders = {stream: stream.codec_context for stream in self._used}
        if self._video is not None:
            alpha = _ALPHA_DECODERS.get(self._video.codec_context.name)
            has_alpha = self._video.metadata.get("alpha_mode") == "1"
            if has_alpha and alpha in av.codecs_available:
                self._decoders[self._video] = av.CodecContext.create(alpha, "r")
            self._decoders[self._video].thread_type = "SLICE" if live else "AUTO"
            self._video_tick = _tick(self._video)
        self._origin = min(
            (s.start_time * _tick(s) for s in self._used if s.start_time is not None), default=0.0
        )
        self._read = _packets(self._container, self._used)

    def _chosen(self, kind: str, number: int | None):
        """The stream of a kind that is used, None if there is none that can be decoded."""
        streams = [s for s in self._container.streams if s.type == kind]
        if number is not None:
            valid = isinstance(number, numbers.Integral) and 0 <= number < len(streams)
            if not (valid and streams[number].codec_context):
                raise ValueError(
                    f"{self.name}: {kind}_stream must be the number of one of its {len(streams)} "
                    f"{kind} streams, from 0, got {number!r}"
                )
            return streams[number]
        # A stream of unknown codec has no context.
        usable = [s for s in streams if s.codec_context and not _is_cover(s)]
        related = self._video if kind == "audio" else None
        best = self._container.streams.best(kind, related=related)
        best = best if best in usable else next(iter(usable), None)
        if len(usable) > 1:
            self._deferred.add(
                f"{self.name}: has {len(usable)} {kind} streams; number {streams.index(best)}, "
                f"which FFmpeg prefers, is used: pass {kind}_stream to choose another"
            )
        return best

    @property
    def duration(self) -> float | None:
        """Seconds stated by the tracks that are used; None if one of them states nothing.

        What the container states may include other tracks, or be a guess from the bit rate.
        """
        ends = [self._stated_end(stream) for stream in self._used]
        return None if None in ends else max(filter(None, ends), default=None)

    @property
    def claimed(self) -> float:
        """Seconds that the container states, right or wrong; 0 if it states nothing."""
        return (self._container.duration or 0) / av.time_base

    def _stated_end(self, stream) -> float | None:
        if "DURATION" in stream.metadata:  # of Matroska
            times = stream.metadata["DURATION"].split(":")
            try:
                seconds = sum(float(t) * 60**i for i, t in enumerate(reversed(times)))
            except ValueError:
                return None
            return max(0.0, seconds - self._origin)
        stated = self._container.format.name == "flac"
        if count := len(stream.index_entries):  # of all samples, or only of the first fragment?
            last = stream.index_entries[count - 1]
            stated = (
                count == stream.frames and last.pos + last.size > 0.8 * self._container.size > 0
            )
        if stream.duration and stated:
            end = (stream.start_time or 0) + stream.duration
            return end * _tick(stream) - self._origin
        return None

    def count(self, until: float = math.inf) -> tuple[float, float]:
        """Ends of the video and of all media in seconds, from the packets up to ``until``.

        Files, and URLs that state nothing, are opened once more for it; the packets of a pipe are
        kept in memory.
        """
        if self.duration is not None and not (self._pipe or os.path.isfile(self.name)):
            video_end = self._video and self._stated_end(self._video)
            return video_end or 0.0, self.duration
        ends, read = {"video": 0.0, "audio": 0.0}, []
        with self._reading(), contextlib.ExitStack() as stack:
            packets = self._read
            if not self._pipe:
                container = stack.enter_context(av.open(self._file, **self._settings))
                packets = _packets(container, [container.streams[s.index] for s in self._used])
            for packet in packets:
                if self._pipe:
                    read.append(packet)
                if not packet.size or packet.is_discard:
                    continue
                kind, stream = packet.stream.type, packet.stream
                start = ends[kind]
                if packet.pts is not None:
                    start = packet.pts * _tick(stream) - self._origin
                ends[kind] = max(ends[kind], start + _duration(packet, stream))
                if start > until:
                    break
        self._read = itertools.chain(read, self._read)
        video_end, audio_end = (round(end, 6) for end in ends.values())  # 20.000000000000004
        return video_end, max(video_end, audio_end)

    def __exit__(self, *_):
        self._stack.close()

    def decode(
        self,
        is_needed: Callable[[float, float], bool] | None = None,
        *,
        video: bool = True,
        audio: bool = True,
    ) -> Iterator[VideoFrame | AudioChunk]:
        """Yield frames and audio, each in the order of time.

        Args:
            is_needed: whether a frame on display from one time to another is used. Others may
                be skipped where no frame depends on them; it reads some packets ahead to decide.
            video, audio: False skips that stream.

        Raises:
            ValueError: reading fails.
        """
        streams = [s for s, used in ((self._video, video), (self._audio, audio)) if s and used]
        with self._reading():
            yield from self._decode(streams, is_needed)

    @contextlib.contextmanager
    def _reading(self):
        """Errors of FFmpeg as ``ValueError``s that name the source."""
        try:
            yield
        except (FFmpegError, OSError) as error:
            # A response without a length ends like this: FFmpeg cannot tell the end from a loss.
            if error.errno == errno.EIO and self._container.size < 0:
                self._deferred.add(f"{self.name}: the connection has ended")
                return
            raise ValueError(f"{self.name}: reading failed: {self._reason(error)}") from error
        except IndexError as error:  # PyAV, when a stream appears that the header did not have
            raise ValueError(f"{self.name}: reading failed: an unannounced stream") from error

    def _reason(self, error: FFmpegError | OSError) -> str:
        if isinstance(error, ExitError | TimeoutError):
            return f"nothing came for {self._timeout:g} s"
        if self._pipe and isinstance(error, InvalidDataError):
            return (
                "a pipe cannot be rewound, which an MP4 with its index at the end needs: write it "
                "with -movflags +faststart, or as MPEG-TS or Matroska"
            )
        if error.errno == errno.EIO and not os.path.isfile(self.name):
            return "the connection broke off before the end"
        return str(error.strerror)

    def _decode(self, streams, is_needed):
        resampler, repair = Resampler(self._origin), None if self._live else TimestampRepair()
        end = 0.0

        def repaired(chunks):
            for chunk in chunks:
                yield from (repair.push(chunk) if repair else (chunk,))

        for frame in self._decoded(streams, is_needed):
            if isinstance(frame, av.VideoFrame):
                video_frame = self._video_frame(frame, end)
                end = video_frame.end
                yield video_frame
            elif isinstance(frame, av.AudioFrame):
                yield from repaired(resampler.push(frame))
        yield from repaired(resampler.finish())
        if repair:
            yield from repair.finish()
        if self.duration is None and os.path.isfile(self.name) and is_truncated(self.name):
            self._deferred.add(f"{self.name}: ends in the middle of a packet; is it cut off?")

    def _decoded(self, streams, is_needed):
        """All frames of PyAV; damaged packets are counted."""
        damaged = dict.fromkeys(streams, 0)
        last = ((stream, None) for stream in streams)  # frames still inside the decoder
        for stream, packet in itertools.chain(self._packets(streams, is_needed), last):
            if packet is None or packet.size:  # an empty one repeats a frame, or has no content
                try:
                    yield from self._decoders[stream].decode(packet)
                except FFmpegError:
                    damaged[stream] += 1
        for stream, count in damaged.items():
            if count:
                kind = "video" if stream is self._video else "audio"
                self._deferred.add(f"{self.name}: skipped {count} damaged packets of the {kind}")

    def _packets(self, streams, is_needed):
        """All packets; the decoder skips frames that neither the caller nor other frames need."""
        packets = (packet for packet in self._read if packet.stream in streams)
        # Only in H.264 a non-reference frame is one that no other frame ever needs.
        video = self._video if self._video in streams else None
        if is_needed is None or video is None or video.codec_context.name != "h264":
            yield from ((packet.stream, packet) for packet in packets)
            return
        for packet, following in _with_following(packets, video):
            if packet.stream is video:
                use = following is None or is_needed(self._time(packet.pts), self._time(following))
                video.codec_context.skip_frame = "DEFAULT" if use else "NONREF"
            yield packet.stream, packet

    def _time(self, pts: int) -> float:
        return pts * self._video_tick - self._origin

    def _video_frame(self, frame: av.VideoFrame, previous_end: float) -> VideoFrame:
        pts = frame.pts if frame.pts is not None else frame.dts
        start = previous_end if pts is None else self._time(pts)
        stream = self._video
        assert stream is not None
        end = start + _duration(frame, stream)
        picture = Picture(frame, float(stream.sample_aspect_ratio or 1))
        return VideoFrame(start, end, picture.height, picture.width, picture.render)


def local_path(source: str | os.PathLike[str]) -> str:
    """A path or URL: an existing file under its own name, the path of a ``file:`` URL, ``~``."""
    path = os.fspath(source)
    if not os.path.exists(path):
        path = os.path.expanduser(path)
        if str(path[:5]).lower() == "file:":
            path = re.sub(r"^//(localhost)?(?=/)", "", path[5:])
            unquoted = urllib.parse.unquote(path)
            path = unquoted if os.path.exists(unquoted) else path
    return path


def _is_cover(stream) -> bool:
    """Whether it is the cover art of an audio file, not a video."""
    return bool(stream.disposition & stream.disposition.attached_pic)


def _tick(stream) -> float:
    """Seconds per unit of the stream's timestamps."""
    return float(stream.time_base)


def _duration(part: av.Packet | av.VideoFrame, stream) -> float:
    """Seconds that a packet or a frame lasts."""
    if part.duration or stream.type != "video":
        return (part.duration or 0) * _tick(stream)
    return 1 / float(stream.average_rate or 25)


def _packets(container, streams) -> Iterator[av.Packet]:
    """The packets of some streams, with time stamps that stay continuous across clock restarts."""
    jumps = bool(container.format.flags & _JUMPING_CLOCK)  # and times of decoding are stored
    clock = ContinuousClock(jumps)
    known = {stream.index: (_tick(stream), stream.type == "audio") for stream in streams}
    for packet in container.demux(streams):
        start = packet.dts if packet.pts is None else packet.pts
        if packet.size and start is not None and not packet.is_discard:
            tick, audio = known[packet.stream_index]
            seconds = clock.offset(
                packet.stream_index,
                tick * (packet.dts if jumps and packet.dts is not None else start),
                tick * start,
                tick * (packet.duration or 0),
                audio=audio,
                key=packet.is_keyframe,
            )
            if seconds:
                ticks = round(seconds / tick)
                packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def _with_following(packets, stream):
    """Each packet with the next timestamp of ``stream`` after its own (None: unknown or none).

    Looks ahead as far as packets may overtake each other between decoding and display.
    """
    waiting = deque()
    near = deque(maxlen=2 * _REORDER + 1)
    ahead = 0

    def release():
        packet = waiting.popleft()
        if packet.stream is not stream or packet.pts is None:
            return packet, None
        return packet, min((pts for pts in near if pts > packet.pts), default=None)

    for packet in packets:
        waiting.append(packet)
        if packet.stream is stream:
            ahead += 1
            if packet.pts is not None:
                near.append(packet.pts)
        while ahead > _REORDER:
            ahead -= waiting[0].stream is stream
            yield release()
    while waiting:
        yield release()
