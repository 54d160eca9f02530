"""The ``--checkpoint`` option and resumable result files of the commands of this folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from omnizip_jax.checkpoint.load import load
from omnizip_jax.models.loaded_model import Params


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``, loaded in float32; an invalid one ends the command with its message."""
    parser.add_argument(
        "--checkpoint",
        type=_loaded,
        default="small",
        help="folder of a converted checkpoint, or small: the model of the package",
    )


def _loaded(checkpoint: str) -> Params:
    try:
        return load(checkpoint, dtype="float32")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def resume(file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines; remove an incomplete last line.

    Args:
        header: settings of the run, the first line of the file. Written if the file is new.

    Raises:
        ValueError: the file has another header or is not a results file.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, header)
        return []
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    try:
        stored, *rows = map(json.loads, complete.decode().splitlines())
        different = [key for key in header if stored.get(key) != header[key]]
    except (ValueError, AttributeError):
        raise ValueError(f"{file} is not a results file: choose another folder") from None
    if different:
        raise ValueError(
            f"{file} was measured with other {' and '.join(different)}: choose another folder, or "
            "delete the file"
        )
    if complete != content:
        file.write_bytes(complete)
    return rows


def append(file: Path, row: dict[str, Any]) -> None:
    """Append a line and close the file."""
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
