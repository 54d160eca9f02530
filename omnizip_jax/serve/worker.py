"""Media are decoded in processes of their own, which may crash or hang without harm."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from omnizip_jax.config import WindowSpec
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.serve.failure import Failure

# Containers that hold their media themselves; playlists and the like point elsewhere.
FORMATS = "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,ogg,wav,mp3,flac,aac,asf,aiff"


class Workers:
    """A few processes, each with one task at a time.

    Args:
        count: processes. They start when they are needed.
        seconds: until a task is given up and its process killed.
    """

    def __init__(self, count: int, seconds: float):
        self._seconds = seconds
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(count)]
        for worker in self._all:
            self._free.put(worker)

    def call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of this module gives, in another process; waits for one that is free.

        Raises:
            Failure: a ``ValueError`` of the function; it takes too long, or its process dies.
        """
        try:
            worker = self._free.get(timeout=self._seconds)
        except queue.Empty:
            raise Failure("too many media wait to be decoded; try again later", 503) from None
        try:
            return worker.call(task, arguments, self._seconds)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._all:
            worker.kill()


class _Worker:
    def __init__(self):
        self._process: Any = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()

    def call(self, task: Callable[..., Any], arguments: tuple, seconds: float) -> Any:
        if self._pipe is None or not self._process.is_alive():
            self._start()
        pipe = self._pipe
        assert pipe is not None
        try:
            pipe.send((task, arguments))
            if not pipe.poll(seconds):
                self.kill()
                raise Failure(f"decoding took longer than {seconds:g} s and was given up", 400)
            good, result = pipe.recv()
        except (EOFError, OSError) as error:
            self.kill()
            raise Failure("decoding failed: the medium broke its decoder") from error
        if not good:
            raise Failure(result)
        return result

    def kill(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.join()
                assert self._pipe is not None
                self._pipe.close()
            self._process = self._pipe = None

    def _start(self) -> None:
        self.kill()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _work(pipe: Connection) -> None:
    """A worker's life: tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its workers itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["JAX_PLATFORMS"] = "cpu"
    while True:
        try:
            task, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = True, task(*arguments)
        except ValueError as error:
            result = False, str(error)
        except MemoryError:
            result = False, "the medium is too large to be decoded"
        pipe.send(result)


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
    """A file as windows; only of containers that hold their media themselves.

    Args:
        name: of the file, in messages.
        seconds, pixels: of the clip, and of a picture of it, at most.

    Raises:
        ValueError: it cannot be read, or is too long or too large.
    """
    try:
        with av.open(path, options={"format_whitelist": FORMATS}) as container:
            sizes = [
                s.codec_context.width * s.codec_context.height for s in container.streams.video
            ]
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{name}: cannot be opened as video or sound") from error
    if max(sizes, default=0) > pixels:
        raise ValueError(f"{name}: pictures of {max(sizes)} pixels, at most {pixels} are taken")
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


def decode_picture(data: bytes, pixels: int) -> np.ndarray:
    """A jpeg or png as uint8 RGB [H, W, 3].

    Raises:
        ValueError: it is neither, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as picture:
            width, height = picture.size
            if width * height > pixels:
                raise ValueError(
                    f"a picture of {width} x {height} pixels, at most {pixels} are taken"
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("expected a jpeg or png that can be decoded") from error
