"""Live sessions: their state, their events, and their storage on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from omnizip_jax.evaluation.decoder_cost import prefill_operations
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.generation import media_counts
from omnizip_jax.inference.snapshot import restore, save
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.types import Window

_LOG = logging.getLogger("omnizip.serve")
_NAME = re.compile(r"[A-Za-z0-9_-]{32}")


@dataclasses.dataclass(frozen=True)
class WindowRead:
    """A window was added to the cache; the fields are those of the message ``window.read``.

    Attributes:
        number: of the window, from 0; dropped windows are counted.
        start: its begin on the clock of the frames, in seconds.
        audio, audio_kept, video, video_kept: tokens of this window.
        grid: rows and columns of its token grids.
        kept: for each grid "1" for a kept token and "0" for a dropped one, row by row.
        heard: the same for the audio tokens.
        fill: share of the cache in use.
        remembered: for every window with tokens in the cache its number and its tokens there.
        work: decoder operations so far, relative to a decoder that reads all tokens.
        skipped: windows dropped so far.
        waited, took: seconds in the queue and on the device.
    """

    number: int
    start: float
    audio: int
    audio_kept: int
    video: int
    video_kept: int
    grid: tuple[int, int]
    kept: tuple[str, ...]
    heard: str
    fill: float
    remembered: tuple[tuple[int, int], ...]
    work: float
    skipped: int
    waited: float
    took: float


@dataclasses.dataclass(frozen=True)
class WindowSkipped:
    """A window was dropped because too many were queued."""

    number: int
    skipped: int
    start: float = 0.0


SessionEvent: TypeAlias = WindowRead | WindowSkipped | RequestError  # why the engine has ended it


@dataclasses.dataclass(frozen=True)
class QueuedWindow:
    """A window, its number, the time at which it arrived, and its begin on the frames' clock."""

    window: Window
    number: int
    since: float
    start: float = 0.0


@dataclasses.dataclass(eq=False)
class Session:
    """State of a live session; only the engine changes it.

    Attributes:
        on_event: called with its events, on the engine's thread or that of ``Engine.push``.
        context: None before the first step and after the end.
        queue: windows that were not read yet.
        arrived, skipped: windows received, and dropped, so far.
        used: time of the last message, or of the last change of the context.
        answers: answers about it that have begun and not ended.
        name: under which it is stored when its client disconnects; None: it is not stored.
        units: window numbers by their unit in the cache, of windows with tokens in it.
    """

    on_event: Callable[[SessionEvent], Any]
    context: Context | None = None
    queue: deque[QueuedWindow] = dataclasses.field(default_factory=deque)
    arrived: int = 0
    skipped: int = 0
    used: float = dataclasses.field(default_factory=time.monotonic)
    answers: int = 0
    name: str | None = None
    units: dict[int, int] = dataclasses.field(default_factory=dict)
    ended: bool = False


def window_read(
    session: Session,
    before: tuple[np.ndarray, np.ndarray],
    after: Context,
    queued: QueuedWindow,
    waited: float,
    took: float,
) -> WindowRead:
    """Describe a window that was read, and update the session's ``units``.

    Args:
        before: audio and video tokens seen and kept before it.
    """
    seen, kept = np.asarray(after.seen) - before[0], np.asarray(after.kept) - before[1]
    trace = after.trace
    assert trace is not None  # a window was fed
    rows, columns = (int(x) for x in np.asarray(queued.window.grid_size))
    exists = np.asarray(queued.window.grid_mask)
    grids = np.asarray(trace.video_keep)[exists][:, : rows * columns]
    session.units[int(after.state.unit) - 1] = queued.number
    retained = after.retained
    session.units = {unit: session.units[unit] for unit in retained}
    return WindowRead(
        number=queued.number,
        start=queued.start,
        **media_counts(seen, kept),
        grid=(rows, columns),
        kept=tuple(_bits(grid) for grid in grids),
        heard=_bits(np.asarray(trace.audio_keep)[: int(seen[0])]),
        fill=after.fill,
        remembered=tuple(zip(session.units.values(), retained.values(), strict=True)),
        work=_relative_operations(after),
        skipped=session.skipped,
        waited=waited,
        took=took,
    )


def _relative_operations(context: Context) -> float:
    """Decoder operations for the kept tokens over those for all tokens, as one prompt.

    It is an upper bound once windows were evicted.
    """
    text, config = int(context.state.origin), context.prefill_config.config.text
    kept, seen = (
        prefill_operations(config, (text + int(np.sum(tokens)),) * config.layers)
        for tokens in (context.kept, context.seen)
    )
    return kept / seen


def _bits(mask: np.ndarray) -> str:
    return "".join("01"[int(bit)] for bit in mask)


@dataclasses.dataclass(frozen=True)
class SessionStore:
    """A folder of sessions under unguessable names.

    Attributes:
        folder: created when the first session is stored.
        limit: sessions in it; beyond it the oldest are deleted.
    """

    folder: Path
    limit: int = 64

    def new_name(self) -> str:
        """A random name of 192 bits."""
        return secrets.token_urlsafe(24)

    def put(self, session: Session) -> None:
        """Store a session that has a context and a name; an error is logged."""
        assert session.context is not None
        partial = self.folder / f"{session.name}.partial"
        fields = {
            "arrived": session.arrived,
            "skipped": session.skipped,
            "units": [*session.units.items()],
        }
        try:
            shutil.rmtree(partial, ignore_errors=True)  # left by a crash
            partial.mkdir(parents=True, mode=0o700)
            (partial / "session.json").write_text(json.dumps(fields))
            save(session.context, partial / "context")
            partial.rename(self.folder / str(session.name))
            self._delete_oldest()
        except Exception as error:
            _LOG.warning("a session could not be saved", exc_info=error)
            shutil.rmtree(partial, ignore_errors=True)

    def load(self, name: str, params: Params, on_event: Callable[[SessionEvent], Any]) -> Session:
        """Load a session, which stays in the folder until ``delete``.

        Raises:
            RequestError: there is none of that name, or it cannot be restored now.
        """
        missing = RequestError(
            "there is no session of that name: begin a new one", 404, "omnizip.resume"
        )
        if not _NAME.fullmatch(name):
            raise missing
        path = self.folder / name
        try:
            fields = json.loads((path / "session.json").read_text())
            units = dict(fields.pop("units"))
            context = restore(params, path / "context")
        except json.JSONDecodeError as error:
            _LOG.warning("a session is damaged: %s", error)
            self.delete(name)
            raise missing from error
        except Exception as error:
            if not path.exists():  # also if another client has resumed it meanwhile
                raise missing from error
            _LOG.warning("a session could not be restored", exc_info=error)
            raise RequestError(
                "the session could not be restored and is kept: try again later, on a server with "
                "the weights that it was read with",
                503,
                "omnizip.resume",
            ) from error
        return Session(on_event, context, name=name, units=units, **fields)

    def delete(self, name: str) -> bool:
        """Delete a session; False if another client has done so."""
        deleted = self.folder / f"{name}.{secrets.token_hex(4)}"
        try:
            (self.folder / name).rename(deleted)  # of two concurrent clients one succeeds
        except FileNotFoundError:
            return False
        shutil.rmtree(deleted, ignore_errors=True)
        return True

    def _delete_oldest(self) -> None:
        stored = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        stored.sort(key=lambda path: path.stat().st_mtime)
        for path in stored[: max(len(stored) - self.limit, 0)]:
            shutil.rmtree(path, ignore_errors=True)
