"""Detection of files that end in the middle of what their own length fields state."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

_TAIL = 1 << 17  # bytes at the end that hold the last packet's header; PES and pages are < 64 KiB


def is_truncated(path: str) -> bool:
    """Whether a file lacks a part of its last packet, by the length fields of its container.

    AVI, WAV, MPEG program streams, Ogg, Matroska, MP4 and FLV have such fields; others have
    none, or their tracks state a duration.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        find_end = _mp4_end if start[4:] == b"ftyp" else _ENDS.get(start[:4])
        file.seek(4)
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


def _mp4_end(file: BinaryIO, size: int) -> int:
    """MP4: boxes one after the other; a length of 1 is followed by one of 64 bits, 0 is open."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:
            return 0
        at += length
    return at


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Matroska: a header, then one segment; live recorders leave its length open."""
    at = 0
    for identity in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        file.seek(at)
        head = file.read(12).ljust(12, b"\0")
        width = 9 - head[4].bit_length()  # bytes of the length, by its leading zeros
        length = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        if head[:4] != identity or length == (1 << 7 * width) - 1:
            return 0
        at += 4 + width + length
    return at


def _flv_end(file: BinaryIO, size: int) -> int:
    """FLV: each tag has 11 bytes and its content, and is followed by its length."""
    file.seek(size - 4)
    length = int.from_bytes(file.read(4), "big")
    file.seek(max(0, size - 4 - length))
    content = int.from_bytes(file.read(4)[1:], "big")
    return size if length == 11 + content else size + 1


def _read_tail(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Position and content of the file's tail."""
    start = file.seek(max(0, size - _TAIL))
    return start, file.read()


_ENDS: dict[bytes, Callable[[BinaryIO, int], int]] = {  # all magic numbers have four bytes
    b"RIFF": _riff_end,
    b"\0\0\1\xba": _mpeg_end,
    b"OggS": _ogg_end,
    b"FLV\x01": _flv_end,
    b"\x1a\x45\xdf\xa3": _matroska_end,
}
