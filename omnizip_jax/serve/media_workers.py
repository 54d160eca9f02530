"""Decoding of clips and frames in worker processes, which may crash or hang without harm."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from pebble import ProcessExpired, ProcessPool
from PIL import Image, ImageOps

from omnizip_jax.media import Clip, load_clip
from omnizip_jax.media.deferred_warnings import DeferredWarnings
from omnizip_jax.media.pixels import over_white
from omnizip_jax.media.sources import open_media
from omnizip_jax.serve.errors import RequestError, invalid_input
from omnizip_jax.window_spec import WindowSpec

_LOG = logging.getLogger("omnizip.serve")
# Containers that hold their media themselves; playlists and the like refer to other files.
FORMATS = "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,ogg,wav,mp3,flac,aac,asf,aiff"


class DecoderPool:
    """Worker processes, each of which runs one task at a time.

    Args:
        workers: number of processes.
        timeout: seconds to wait for a free worker, and seconds until a task is aborted.
    """

    def __init__(self, workers: int, timeout: float):
        self._timeout = timeout
        self._free = asyncio.Semaphore(workers)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(workers, initializer=_initialize, context=context)
        self._started = self._pool.schedule(Image.preinit)

    @property
    def ready(self) -> bool:
        """Whether a worker has started, which takes a second."""
        return self._started.done()

    async def call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of this module in a worker, which ends if the caller is cancelled.

        Raises:
            RequestError: that of the function; it timed out, or crashed its process; or no worker
                became free. Other errors of the function are bugs and propagate.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            message = "too many media are queued for decoding; try again later"
            raise RequestError(message, 503) from None
        try:
            future = self._pool.schedule(task, arguments, timeout=self._timeout)
            return await asyncio.wrap_future(future)
        except TimeoutError as error:
            message = f"decoding took longer than {self._timeout:g} s and was aborted"
            raise RequestError(message) from error
        except MemoryError as error:
            raise RequestError("the medium is too large to be decoded") from error
        except ProcessExpired as error:
            _LOG.warning("a decoder failed: %r", error)
            raise RequestError("decoding failed: the medium crashed its decoder") from error
        finally:
            self._free.release()

    def close(self) -> None:
        """Kill all workers."""
        self._pool.stop()
        self._pool.join()


def _initialize() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["JAX_PLATFORMS"] = "cpu"


def clip_seconds(
    path: str, name: str, use_audio: bool, use_video: bool, seconds: float, pixels: int
) -> float:
    """Duration of a clip, from its headers or by counting packets, without decoding it.

    Args:
        name: of the file, in messages.
        seconds: the count ends here.
        pixels: upper bound on the size of a frame.

    Raises:
        RequestError: it cannot be opened, is not a container that holds its media itself, lacks the
            streams, or exceeds the bound.
    """
    with (
        _checked(path, name, pixels),
        open_media(path, use_video, use_audio, timeout=None, deferred=DeferredWarnings()) as media,
    ):
        stated = media.duration
        return stated if stated is not None and stated < seconds else media.count(seconds)[1]


def decode_clip(
    path: str,
    name: str,
    spec: WindowSpec,
    use_audio: bool,
    use_video: bool,
    max_frames: int | None,
    max_windows: int,
    pixels: int,
) -> Clip:
    """Load a clip from a container that holds its media itself.

    Args:
        name: of the file, in messages.
        max_windows, pixels: upper bounds on the duration, and on the size of a frame.

    Raises:
        RequestError: it cannot be decoded, or exceeds a bound.
    """
    with _checked(path, name, pixels):
        return load_clip(
            path,
            spec,
            max_frames=max_frames,
            max_windows=max_windows,
            use_audio=use_audio,
            use_video=use_video,
        )


@contextlib.contextmanager
def _checked(path: str, name: str, pixels: int) -> Iterator[None]:
    """Check a container; errors about it become ``RequestError`` with its name, not its path."""
    try:
        with av.open(path, options={"format_whitelist": FORMATS}) as container:
            sizes = [
                s.codec_context.width * s.codec_context.height
                for s in container.streams.video
                if s.codec_context is not None
            ]
    except (FFmpegError, OSError) as error:
        raise RequestError(f"{name}: cannot be opened as video or audio") from error
    if max(sizes, default=0) > pixels:
        raise RequestError(f"{name}: frames of {max(sizes)} pixels, at most {pixels} are accepted")

    try:
        with invalid_input():
            yield
    except RequestError as error:
        raise RequestError(str(error).replace(path, name)) from error


def decode_frame(data: bytes, pixels: int) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 RGB [H, W, 3], upright by its EXIF data, over white.

    Raises:
        RequestError: it is neither, or has more pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
            if width * height > pixels:
                raise RequestError(
                    f"a frame of {width} x {height} pixels, at most {pixels} are accepted"
                )
            upright = ImageOps.exif_transpose(image)
            decoded = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise RequestError("expected a JPEG or PNG that can be decoded") from error
    return over_white(np.asarray(decoded))
