"""Decoding of clips and frames in worker processes, which may crash or hang without harm."""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from pebble import ProcessPool
from PIL import Image, ImageOps

from omnizip_jax.media import Clip, load_clip
from omnizip_jax.media.pixels import over_white
from omnizip_jax.serve.errors import RequestError
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
        self._started = self._pool.schedule(_load_decoders)

    @property
    def ready(self) -> bool:
        """Whether a worker has started, which takes a second."""
        return self._started.done()

    async def call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of this module in a worker, which ends if the caller is cancelled.

        Raises:
            RequestError: the function raised an error, timed out, or crashed its process; or no
                worker became free.
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
        except ValueError as error:
            raise RequestError(str(error)) from error
        except TimeoutError as error:
            message = f"decoding took longer than {self._timeout:g} s and was aborted"
            raise RequestError(message) from error
        except MemoryError as error:
            raise RequestError("the medium is too large to be decoded") from error
        except Exception as error:
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


def _load_decoders() -> None:
    Image.preinit()


def decode_clip(
    path: str,
    name: str,
    spec: WindowSpec,
    use_audio: bool,
    use_video: bool,
    max_frames: int | None,
    seconds: float,
    pixels: int,
) -> Clip:
    """Load a clip from a container that holds its media itself.

    Args:
        name: of the file, in messages.
        seconds, pixels: upper bounds on the duration, and on the size of a frame.

    Raises:
        ValueError: it cannot be decoded, or exceeds a bound.
    """
    try:
        with av.open(path, options={"format_whitelist": FORMATS}) as container:
            sizes = [
                s.codec_context.width * s.codec_context.height for s in container.streams.video
            ]
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{name}: cannot be opened as video or audio") from error
    if max(sizes, default=0) > pixels:
        raise ValueError(f"{name}: frames of {max(sizes)} pixels, at most {pixels} are accepted")
    try:
        return load_clip(
            path,
            spec,
            max_frames=max_frames,
            max_windows=max(1, int(seconds) // spec.seconds),
            use_audio=use_audio,
            use_video=use_video,
        )
    except ValueError as error:
        raise ValueError(str(error).replace(path, name)) from error


def decode_frame(data: bytes, pixels: int) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 RGB [H, W, 3], upright by its EXIF data, over white.

    Raises:
        ValueError: it is neither, or has more pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
            if width * height > pixels:
                raise ValueError(
                    f"a frame of {width} x {height} pixels, at most {pixels} are accepted"
                )
            upright = ImageOps.exif_transpose(image)
            mode = "RGBA" if upright.has_transparency_data else "RGB"
            return over_white(np.asarray(upright.convert(mode)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("expected a JPEG or PNG that can be decoded") from error
