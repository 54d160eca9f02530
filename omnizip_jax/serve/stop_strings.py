"""Texts at which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence


class Stop:
    """Cuts a text that comes in pieces before the first of some words.

    What may be the beginning of such a word is held back until it is known not to be.

    Args:
        words: none of them empty.

    Attributes:
        text: all that was let through.
        stopped: a word was found; nothing more is let through.
    """

    def __init__(self, words: Sequence[str] = ()):
        self.text, self.stopped = "", False
        self._words, self._held = tuple(words), ""

    def push(self, piece: str, last: bool = False) -> str:
        """What of the text may be shown now.

        Args:
            last: no more will come, so nothing is held back.
        """
        if self.stopped:
            return ""
        held = self._held + piece
        ends = [place for word in self._words if (place := held.find(word)) >= 0]
        if ends:
            self.stopped = True
            shown, self._held = held[: min(ends)], ""
        else:
            cut = len(held) - (0 if last else self._open(held))
            shown, self._held = held[:cut], held[cut:]
        self.text += shown
        return shown

    def _open(self, text: str) -> int:
        """Characters at the end that may begin a word."""
        lengths = (
            n for word in self._words for n in range(1, len(word)) if text.endswith(word[:n])
        )
        return max(lengths, default=0)
