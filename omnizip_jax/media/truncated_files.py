"""Detection of files that end in the middle of what their own length fields state."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

_TAIL = 1 << 17  # bytes at the end that hold the last packet's header; PES and pages are < 64 KiB


def is_truncated(path: str) -> bool:
    """Whether an AVI, WAV, MPEG or Ogg file lacks a part of its last packet.

    Other containers state their duration, or have no length fields.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        find_end = _ENDS.get(file.read(4))
        return find_end is not None and find_end(file, size) > size


def _riff_end(file: BinaryIO, size: int) -> int:
    """RIFF: the total size is at the beginning; live recorders leave 0 or -1."""
    (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
    return 8 + length if length < 0xFFFFFFF0 else 0


def _mpeg_end(file: BinaryIO, size: int) -> int:
    """MPEG program stream: the last packet of a stream, 00 00 01 id, and its length."""
    start, tail = _read_tail(file, size)
    at = len(tail)
    while (at := tail.rfind(b"\0\0\1", 0, at)) >= 0:
        if tail[at + 3 : at + 4] >= b"\xbb" and at + 6 <= len(tail):
            return start + at + 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
        if tail[at + 3 : at + 4] in (b"\xb9", b"\xba"):  # the end, or a pack that begins
            return 0
    return 0


def _ogg_end(file: BinaryIO, size: int) -> int:
    """Ogg: the last page, whose header ends in the sizes of its segments."""
    start, tail = _read_tail(file, size)
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return 0
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return start + at + 27 + tail[at + 26] + sum(segments)


def _read_tail(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Position and content of the file's tail."""
    start = file.seek(max(0, size - _TAIL))
    return start, file.read()


_ENDS: dict[bytes, Callable[[BinaryIO, int], int]] = {  # all magic numbers have four bytes
    b"RIFF": _riff_end,
    b"\0\0\1\xba": _mpeg_end,
    b"OggS": _ogg_end,
}
