"""Files that end in the middle of what their own length fields announce."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

_TAIL = 1 << 17  # bytes at the end that hold the last packet's header; PES and pages are < 64 KiB


def is_cut_off(path: str) -> bool:
    """Whether an AVI, WAV, MPEG or Ogg file lacks a part of its last packet.

    Other containers say how long they last, or cannot tell.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        end = next((end for magic, end in _ENDS.items() if _starts(file, magic)), None)
        return end is not None and end(file, size) > size


def _starts(file: BinaryIO, magic: bytes) -> bool:
    file.seek(0)
    return file.read(len(magic)) == magic


def _riff(file: BinaryIO, size: int) -> int:
    """RIFF: the size of everything stands at the beginning; live recorders leave 0 or -1."""
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
    return 8 + length if length < 0xFFFFFFF0 else 0


def _mpeg(file: BinaryIO, size: int) -> int:
    """MPEG program stream: the last packet of a stream, 00 00 01 id, and its length."""
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"\0\0\1", 0, at)) >= 0:
        if tail[at + 3 : at + 4] >= b"\xbb" and at + 6 <= len(tail):
            return start + at + 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
        if tail[at + 3 : at + 4] in (b"\xb9", b"\xba"):  # the end, or a pack that begins
            return 0
    return 0


def _ogg(file: BinaryIO, size: int) -> int:
    """Ogg: the last page, whose header ends in the sizes of its segments."""
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return 0
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return start + at + 27 + tail[at + 26] + sum(segments)


_ENDS: dict[bytes, Callable[[BinaryIO, int], int]] = {
    b"RIFF": _riff,
    b"\0\0\1\xba": _mpeg,
    b"OggS": _ogg,
}
