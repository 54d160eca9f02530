"""Checksums of the files of a checkpoint folder, which find damage.

CRC-32 of the standard library detects damage, not forgery, and is faster than disks (4.9 GB a
second on a core of 2026, BLAKE2 0.8).
"""

from __future__ import annotations

import zlib
from pathlib import Path

CHECKSUMS = "checksums"  # the file
READ_BYTES = 2**22  # at once


def write_checksums(folder: Path) -> None:
    """Write the checksum of every file in a folder; its files must not change afterwards."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_file_checksum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def damaged_files(folder: Path) -> list[str]:
    """Describe each file that changed since its checksum was written; added files are ignored."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: value for value, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        return [f"{CHECKSUMS}: unreadable ({error})"]
    if not expected:
        return [f"{CHECKSUMS}: empty"]
    problems = []
    for name, value in expected.items():
        try:
            found = _file_checksum(folder / name)
            if found != value:
                problems.append(f"{name}: changed, checksum {found} instead of {value}")
        except (OSError, ValueError) as error:
            problems.append(f"{name}: unreadable ({error})")
    return problems


def _file_checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
