"""A live session: what it remembers, and the windows that wait to be read."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from omnizip_jax.evaluation.decoder_cost import prefill_operations
from omnizip_jax.inference.context import Context
from omnizip_jax.types import Window


@dataclasses.dataclass(frozen=True)
class WindowRead:
    """A window is in the cache.

    Attributes:
        number: of the window, from 0 on; dropped ones are counted.
        audio, audio_kept, video, video_kept: tokens of this window.
        grid: rows and columns of its grids.
        kept: for each grid, "1" for a token that stays and "0" for one that does not, row by row.
        heard: the same for the sound.
        fill: share of the cache in use.
        remembered: numbers of the windows of which anything is in the cache, in order, each with
            its tokens there.
        work: operations of the decoder so far as a share of those with all tokens.
        skipped: windows dropped so far.
        waited, took: seconds in the queue, and on the device.
    """

    number: int
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
    """A window came faster than the device could take it, and was dropped."""

    number: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class Expired:
    """The session has ended, and why."""

    reason: str


News: TypeAlias = WindowRead | WindowSkipped | Expired


@dataclasses.dataclass
class Waiting:
    """A window, its number, and when it came."""

    window: Window
    number: int
    since: float


@dataclasses.dataclass(eq=False)
class Session:
    """Belongs to the engine; others keep it as a handle.

    Attributes:
        context: what is remembered; None until it is begun, and after the end.
        tell: called with what happens, on the engine's thread or on that of ``push``.
        waiting: windows that came and were not read.
        arrived: windows that came.
        skipped: windows that were dropped.
        used: when the session was last heard of.
        size: bytes of the cache.
        name: under which it may wait for its owner on a shelf; None: it does not.
        units: numbers of the windows that are remembered, by their units in the cache.
    """

    tell: Callable[[News], Any]
    context: Context | None = None
    waiting: deque[Waiting] = dataclasses.field(default_factory=deque)
    arrived: int = 0
    skipped: int = 0
    used: float = dataclasses.field(default_factory=time.monotonic)
    size: int = 0
    name: str | None = None
    units: dict[int, int] = dataclasses.field(default_factory=dict)
    ended: bool = False


def window_read(
    session: Session, before: tuple[np.ndarray, np.ndarray], after: Context, waiting: Waiting
) -> dict[str, Any]:
    """What became of a window, as the fields of ``WindowRead`` but for its times.

    Args:
        before: audio and video tokens seen and kept before it.
    """
    seen, kept = np.asarray(after.seen) - before[0], np.asarray(after.kept) - before[1]
    trace = after.trace
    assert trace is not None  # a window was fed
    rows, columns = (int(x) for x in np.asarray(waiting.window.grid_size))
    exists = np.asarray(waiting.window.grid_mask)
    grids = np.asarray(trace.video_keep)[exists][:, : rows * columns]
    return {
        "number": waiting.number,
        "audio": int(seen[0]),
        "audio_kept": int(kept[0]),
        "video": int(seen[1]),
        "video_kept": int(kept[1]),
        "grid": (rows, columns),
        "kept": tuple(_bits(grid) for grid in grids),
        "heard": _bits(np.asarray(trace.audio_keep)[: int(seen[0])]),
        "fill": after.fill,
        "remembered": _remembered(session, after, waiting.number),
        "work": _work(after),
        "skipped": session.skipped,
    }


def _remembered(session: Session, after: Context, number: int) -> tuple[tuple[int, int], ...]:
    """What the cache holds of each window, once that of a number is in."""
    session.units[int(after.state.unit) - 1] = number
    left = after.retained
    session.units = {unit: session.units[unit] for unit in left}
    return tuple(zip(session.units.values(), left.values(), strict=True))


def _work(context: Context) -> float:
    """As if all that came were one prompt; of windows that left the cache it counts too much."""
    text, config = int(context.state.origin), context.prefill_config.config.text
    kept, seen = (
        prefill_operations(config, (text + int(np.sum(tokens)),) * config.layers)
        for tokens in (context.kept, context.seen)
    )
    return kept / seen


def _bits(mask: np.ndarray) -> str:
    return "".join("01"[int(bit)] for bit in mask)
