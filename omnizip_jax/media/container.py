"""Files, URLs and capture devices: video and audio in one pass, on the clip's clock (PyAV)."""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import ExitError, FFmpegError
from av.video.reformatter import Interpolation

from omnizip_jax.media.audio import Resampler
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.media.timeline import AudioChunk, TimestampRepair, VideoFrame
from omnizip_jax.media.truncated_files import is_truncated

# swscale's bicubic is antialiased; without the other flags it rounds coarsely and halves the
# resolution of colour. Scaling and conversion to RGB in one step agree with RGB at full size
# resized by Pillow to 0.1-0.4 of 255 levels on average, at a fifth of the time.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
# PyAV 18 fails on mistyped metadata without this option; PyAV 19 does not have it.
_LENIENT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
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


class MediaFile:
    """An open file, URL or capture device. Use as a context manager.

    Args:
        source: path, URL, or a device as (FFmpeg's input format, name).
        use_video, use_audio: False ignores that stream.
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
        try:
            self._container = av.open(
                self._pipe or file,
                format=kind,
                options=options or {},
                timeout=timeout,
                **_LENIENT,
            )
        except (FFmpegError, OSError) as error:
            raise ValueError(
                f"{self.name}: cannot be opened as video or audio: {self._reason(error)}"
            ) from error
        except ValueError as error:  # PyAV, on an unknown format
            raise ValueError(f"{self.name}: cannot be opened: {error}") from error
        streams = self._container.streams
        # Cover art of an audio file is not a video; a stream of unknown codec has no context.
        videos = [s for s in streams.video if not s.disposition & s.disposition.attached_pic]
        self._video = next((s for s in videos if use_video and s.codec_context), None)
        self._audio = next((s for s in streams.audio if use_audio and s.codec_context), None)
        self.has_video, self.has_audio = self._video is not None, self._audio is not None
        used = [s for s in (self._video, self._audio) if s is not None]
        if not used:
            found = ", ".join(s.type for s in streams) or "nothing"
            self.close()
            expected = " or ".join(["video"] * use_video + ["audio"] * use_audio) or "nothing"
            raise ValueError(f"{self.name}: expected {expected}, but the file has {found}")
        if self._video is not None:
            self._video.thread_type = "SLICE" if live else "AUTO"
        self._origin = min(
            (s.start_time * _tick(s) for s in used if s.start_time is not None), default=0.0
        )

    @property
    def duration(self) -> float | None:
        """Seconds stated by the container, or None."""
        duration = self._container.duration
        return None if duration is None else duration / av.time_base

    def video_end(self) -> float:
        """Seconds from the start of the clip to the end of the video.

        As the container states it, else by reading the file's packets.
        """
        if self._video is None:
            return 0.0
        if self._video.duration:
            return self._time((self._video.start_time or 0) + self._video.duration)
        if self.duration:
            return self.duration
        if self._pipe:
            raise ValueError(f"{self.name}: max_frames needs a length, and this pipe states none")
        try:
            with av.open(self.name, timeout=self._timeout, **_LENIENT) as container:
                packets = container.demux(container.streams[self._video.index])
                ends = [p.pts + (p.duration or 0) for p in packets if p.pts is not None]
                return self._time(max(ends, default=0))
        except (FFmpegError, OSError) as error:
            raise ValueError(f"{self.name}: reading failed: {self._reason(error)}") from error

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._container.close()
        if self._pipe:
            self._pipe.close()

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
        try:
            yield from self._decode(streams, is_needed)
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
        if os.path.isfile(self.name) and is_truncated(self.name):
            self._deferred.add(f"{self.name}: ends in the middle of a packet; is it cut off?")

    def _decoded(self, streams, is_needed):
        """All frames of PyAV; damaged packets are counted."""
        damaged = dict.fromkeys(streams, 0)
        for packet in self._packets(streams, is_needed):
            if packet.size:  # an empty one repeats a frame, or has no content
                try:
                    yield from packet.decode()
                except FFmpegError:
                    damaged[packet.stream] += 1
        for stream in streams:
            try:
                yield from stream.decode()  # frames still inside the decoder
            except FFmpegError:
                damaged[stream] += 1
        for stream, count in damaged.items():
            if count:
                kind = "video" if stream is self._video else "audio"
                self._deferred.add(f"{self.name}: skipped {count} damaged packets of the {kind}")

    def _packets(self, streams, is_needed):
        """All packets; the decoder skips frames that neither the caller nor other frames need."""
        packets = self._container.demux(streams)
        # Only in H.264 a non-reference frame is one that no other frame ever needs.
        video = self._video if self._video in streams else None
        if is_needed is None or video is None or video.codec_context.name != "h264":
            yield from packets
            return
        for packet, following in _with_following(packets, video):
            if packet.stream is video:
                use = following is None or is_needed(self._time(packet.pts), self._time(following))
                video.codec_context.skip_frame = "DEFAULT" if use else "NONREF"
            yield packet

    def _time(self, pts: int) -> float:
        return pts * _tick(self._video) - self._origin

    def _video_frame(self, frame: av.VideoFrame, previous_end: float) -> VideoFrame:
        pts = frame.pts if frame.pts is not None else frame.dts
        start = previous_end if pts is None else self._time(pts)
        stream = self._video
        assert stream is not None
        end = start + (
            frame.duration * _tick(stream)
            if frame.duration
            else 1 / float(stream.average_rate or 25)
        )
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        height, width = frame.height, frame.width * float(stream.sample_aspect_ratio or 1)

        def render(height: int, width: int) -> np.ndarray:
            if turns % 2:
                height, width = width, height
            scaled = frame.reformat(
                width=width, height=height, format="rgb24", interpolation=_SCALER, threads=1
            )
            return np.rot90(scaled.to_ndarray(), turns)

        if turns % 2:
            height, width = width, height
        return VideoFrame(start, end, height, width, render)


def local_path(source: str | os.PathLike[str]) -> str:
    """A path or URL in FFmpeg's form, with ``~`` expanded."""
    return os.path.expanduser(os.fspath(source))


def _tick(stream) -> float:
    """Seconds per unit of the stream's timestamps."""
    return float(stream.time_base)


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
