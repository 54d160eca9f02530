"""Warnings that threads and readers collect, issued at the caller's line."""

from __future__ import annotations

import sys
import threading
import warnings

_PACKAGE = __name__.partition(".")[0]


class DeferredWarnings:
    """Warnings about one source: each text once.

    A source may be read by a thread, where the caller's line is out of reach, and a file may be
    read twice; so readers ``add`` texts, and the function that the user called ``emit``s them.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._emitted = 0

    def add(self, text: str) -> None:
        """Store a text, unless it is stored already."""
        with self._lock:
            if text not in self._texts:
                self._texts.append(text)

    def add_if_short(self, name: str, duration: float, stated: float | None) -> None:
        """Store a warning if a source ended well before the duration stated by its tracks."""
        if stated is not None and duration < 0.9 * stated:
            self.add(f"{name}: ends at {duration:.1f} s of {stated:.1f} s; is it cut off?")

    def emit(self) -> None:
        """Issue the new warnings, at the line that called into this package."""
        while self._emitted < len(self._texts):
            self._emitted += 1
            warnings.warn(self._texts[self._emitted - 1], stacklevel=_outside())


def _outside() -> int:
    """The ``stacklevel`` of the first line outside this package, for the calling function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    return level
