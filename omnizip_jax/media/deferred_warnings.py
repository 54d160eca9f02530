"""Warnings, gathered where they arise and given where they are read."""

from __future__ import annotations

import sys
import threading
import warnings

_PACKAGE = __name__.partition(".")[0]


class Notes:
    """What the readers of one source have to say: each thing once, to whoever asked for it.

    A reader may be a thread, of which the caller's line is out of sight, and a file may be read
    twice; so readers ``add``, and the function that the user called ``tell``s.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._told = 0

    def add(self, text: str) -> None:
        """Keep a text, unless it is there already."""
        with self._lock:
            if text not in self._texts:
                self._texts.append(text)

    def tell(self) -> None:
        """Warn of what is new, at the line that called into this package."""
        while self._told < len(self._texts):
            self._told += 1
            warnings.warn(self._texts[self._told - 1], stacklevel=_outside())


def _outside() -> int:
    """The ``stacklevel`` by which the caller warns at the first line outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    return level
