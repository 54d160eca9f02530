"""Sessions on the disk: their owners are gone, and may come back."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import shutil
from pathlib import Path

from omnizip_jax.inference.context import Context
from omnizip_jax.inference.snapshot import restore, save
from omnizip_jax.models.params import Params
from omnizip_jax.serve.failure import Failure

_LOG = logging.getLogger("omnizip.serve")
_NAME = re.compile(r"[A-Za-z0-9_-]{32}")
CONTEXT, ABOUT = "context", "session.json"


@dataclasses.dataclass(frozen=True)
class Left:
    """A session whose owner has gone.

    Attributes:
        context: what it remembers.
        arrived, skipped, units: as ``Session`` has them.
    """

    context: Context
    arrived: int
    skipped: int
    units: dict[int, int]


@dataclasses.dataclass(frozen=True)
class Shelf:
    """A folder of sessions, under names that only their owners know.

    Attributes:
        folder: is made when the first one comes.
        most: sessions that are kept; of more the one that left first goes.
    """

    folder: Path
    most: int = 64

    def name(self) -> str:
        """A new one, which nobody can guess."""
        return secrets.token_urlsafe(24)

    def put(self, name: str, left: Left) -> None:
        """Write a session; what cannot be written is logged, and lost."""
        target, unfinished = self.folder / name, self.folder / f"{name}.unfinished"
        about = {"arrived": left.arrived, "skipped": left.skipped, "units": [*left.units.items()]}
        try:
            unfinished.mkdir(parents=True, mode=0o700)
            (unfinished / ABOUT).write_text(json.dumps(about))
            save(left.context, unfinished / CONTEXT)
            unfinished.rename(target)
            self._tidy()
        except (OSError, ValueError) as error:
            _LOG.warning("a session could not be saved: %s", error)
            shutil.rmtree(unfinished, ignore_errors=True)

    def take(self, name: object, params: Params) -> Left:
        """A session that was put here; it is here no more.

        Raises:
            Failure: there is none of that name, or it was read with other weights.
        """
        gone = Failure("there is no session of that name: begin a new one", 404, "omnizip.resume")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise gone
        taken = self.folder / f"{name}.taken"
        try:
            (self.folder / name).rename(taken)  # of two who ask for it, one gets it
        except OSError:
            raise gone from None
        try:
            about = json.loads((taken / ABOUT).read_text())
            context = restore(params, taken / CONTEXT)
        except (OSError, ValueError) as error:
            _LOG.warning("a session could not be restored: %s", error)
            raise gone from error
        finally:
            shutil.rmtree(taken, ignore_errors=True)
        return Left(context, about["arrived"], about["skipped"], dict(about["units"]))

    def _tidy(self) -> None:
        there = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        there.sort(key=lambda path: path.stat().st_mtime)
        for path in there[: max(len(there) - self.most, 0)]:
            shutil.rmtree(path, ignore_errors=True)
