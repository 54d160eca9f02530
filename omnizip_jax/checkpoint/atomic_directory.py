"""Directories that appear under their name only when complete, written by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from omnizip_jax.checkpoint.safetensors_index import ConversionError

MARKER = "CONVERSION_UNFINISHED"  # in a staging directory, locked by its writer


@contextlib.contextmanager
def atomic_directory(
    target: Path, *, wait: bool = False, work: str = "conversion"
) -> Iterator[Path]:
    """An empty directory on the disk of ``target``, to be renamed to it when complete.

    It is in the staging directory ``TARGET.unfinished``, beside a marker that its writer keeps
    locked for as long as the process lives. If the lock is free, the staging directory was left
    by a killed writer and is removed. At the end nothing remains but what was renamed.

    Args:
        target: the final path; its parents are created.
        wait: wait for another writer of the same target, instead of refusing.
        work: what the writer does, for messages.

    Raises:
        ConversionError: another writer is running; the staging path exists and was not made
            here, or cannot be written.
    """
    staging = target.with_name(f"{target.name}.unfinished")
    with _lock(staging, wait, work):
        if _content(staging):
            print(f"{staging}: removing the remains of an interrupted {work}", file=sys.stderr)
            _clear(staging)
        try:
            folder = staging / "checkpoint"
            folder.mkdir()
            yield folder
        finally:
            # The marker is removed last, and kept with files that could not be removed.
            if _clear(staging):
                (staging / MARKER).unlink()
                with contextlib.suppress(OSError):  # the next writer has created its marker
                    staging.rmdir()


def remove(path: Path) -> None:
    """Remove a file, or a directory with its content, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(staging: Path) -> bool:
    """Remove everything but the marker; returns whether that succeeded."""
    for path in _content(staging):
        remove(path)
    return not _content(staging)


def _content(staging: Path) -> list[Path]:
    return [path for path in staging.iterdir() if path.name != MARKER]


def _lock(staging: Path, wait: bool, work: str) -> IO[str]:
    """Create, open and lock the marker; closing it unlocks."""
    marker = staging / MARKER
    while True:
        try:
            staging.mkdir(parents=True, exist_ok=True)
            names = os.listdir(staging)  # at one moment: other writers create and remove it
            if names and MARKER not in names:
                raise ConversionError(
                    f"{staging}: in the way, and not the remains of a {work}; remove it"
                )
            file = marker.open("a")
        except FileNotFoundError:
            continue  # its writer has just removed it
        except OSError as error:
            raise ConversionError(f"{staging}: cannot be written to ({error})") from error
        with contextlib.ExitStack() as on_failure:
            on_failure.enter_context(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise ConversionError(
                    f"{staging}: another {work} to this target is running; let it finish, or "
                    "choose another target"
                ) from error
            with contextlib.suppress(FileNotFoundError):  # removed by its writer while we waited
                if os.path.samestat(os.fstat(file.fileno()), marker.stat()):
                    if not file.tell():
                        file.write(f"The remains of an interrupted {work}. Safe to delete.\n")
                        file.flush()
                    on_failure.pop_all()
                    return file
