"""Where a checkpoint is made before it appears under its name: one maker at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from omnizip_jax.checkpoint.folder import UNFINISHED
from omnizip_jax.checkpoint.released import ConversionError


@contextlib.contextmanager
def unfinished(target: Path, wait: bool = False, work: str = "conversion") -> Iterator[Path]:
    """An empty folder on the disk of ``target``, to be renamed to it when all is written.

    It lies in ``TARGET.unfinished`` beside a marker, which its maker holds locked for as long as
    it lives, however it ends. Where nobody holds the lock lie the remains of a maker that was
    killed: they are removed. At the end nothing stays but what was renamed.

    Args:
        target: what is made; its parents are created.
        wait: for another maker of the same target to end, instead of refusing.
        work: what a maker does, for messages.

    Raises:
        ConversionError: another maker is at it; something else lies in the way; no room there.
    """
    room = target.with_name(f"{target.name}.unfinished")
    with _lock(room, wait, work):
        if _others(room):
            print(f"{room}: removing the remains of an interrupted {work}", file=sys.stderr)
            _clear(room)
        try:
            folder = room / "checkpoint"
            folder.mkdir()
            yield folder
        finally:
            # The marker goes last, and stays with what could not be removed.
            if _clear(room):
                (room / UNFINISHED).unlink()
                with contextlib.suppress(OSError):  # the next maker is in it already
                    room.rmdir()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(room: Path) -> bool:
    """Remove all but the marker; whether nothing is left."""
    for path in _others(room):
        remove(path)
    return not _others(room)


def _others(room: Path) -> list[Path]:
    return [path for path in room.iterdir() if path.name != UNFINISHED]


def _lock(room: Path, wait: bool, work: str) -> IO[str]:
    """The marker, open and locked; closing it is enough to unlock."""
    marker = room / UNFINISHED
    while True:
        try:
            room.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in room.iterdir()]  # at one moment: makers come and go
            if names and UNFINISHED not in names:
                raise ConversionError(
                    f"{room}: in the way, and not the remains of a {work}; remove it"
                )
            file = marker.open("a")
        except FileNotFoundError:
            continue  # its maker has just removed it
        except OSError as error:
            raise ConversionError(f"{room}: cannot be written to ({error})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), marker.stat()):
                if not file.tell():
                    file.write(f"The remains of an interrupted {work}. Safe to delete.\n")
                    file.flush()
                return file
        except FileNotFoundError:
            pass  # removed by its maker while we waited
        except BlockingIOError as error:
            file.close()
            raise ConversionError(
                f"{room}: another {work} to this target is running; let it finish, or choose "
                "another target"
            ) from error
        except BaseException:
            file.close()
            raise
        file.close()
