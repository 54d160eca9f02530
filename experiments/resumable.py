"""A file of JSON lines that a run adds to, and that another run goes on from.

The first line says what was run; what is run otherwise does not go on from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def resume(file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file holds already; a half-written last line is cut off.

    Args:
        header: what is run, as JSON has it. A new file begins with it.

    Raises:
        ValueError: what is there was run with something else, or is no file of results.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, header)
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        there, *rows = map(json.loads, whole.decode().splitlines())
        different = [key for key in header if there.get(key) != header[key]]
    except (ValueError, AttributeError):
        raise ValueError(f"{file} is no file of results: give another folder") from None
    if different:
        raise ValueError(
            f"{file} was measured with other {' and '.join(different)}: give another folder, or "
            "delete it to begin anew"
        )
    if whole != content:
        file.write_bytes(whole)
    return rows


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a line; it is in the file when this returns."""
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
