"""Named pipes, which FFmpeg would wait for without end."""

from __future__ import annotations

import os
import select
from pathlib import Path


class Pipe:
    """A named pipe as FFmpeg reads it; no read waits longer than ``timeout``.

    Args:
        path: of the pipe.
        timeout: seconds; None waits, for a writer too.
    """

    def __init__(self, path: str, timeout: float | None):
        self.name = path
        self._timeout = timeout
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or it waits for a writer here

    @staticmethod
    def at(path: str) -> bool:
        """Whether there is a named pipe."""
        return Path(path).is_fifo()

    def read(self, size: int) -> bytes:
        """Up to so many bytes, none at the end. Raises ``TimeoutError``."""
        if not select.select([self._file], [], [], self._timeout)[0]:
            raise TimeoutError
        return os.read(self._file, size)

    def close(self) -> None:
        os.close(self._file)
