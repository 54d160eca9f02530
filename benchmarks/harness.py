"""Timing of alternating calls, rows of results, and their display."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.goals import Goal
from omnizip_jax.evaluation.hardware import device_peak, process_peak

Call = Callable[[], Any]
MOST_ROUNDS = 9  # of short calls


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls of one function."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.samples), max(self.samples)


def alternate(*calls: Call, repeats: int, warm: int = 1, seconds: float = 0.0) -> list[Timing]:
    """Time alternating calls, A B A B ..., so that a disturbance affects all of them.

    A call must return only when its work is done (``jax.block_until_ready``,
    ``torch.cuda.synchronize``); the first ``warm`` rounds are not counted. Short calls vary more:
    rounds beyond ``repeats`` follow, up to ``MOST_ROUNDS``, while all take less than ``seconds``.
    """
    for _ in range(warm):
        for call in calls:
            call()
    samples: list[list[float]] = [[] for _ in calls]
    rounds, began = 0, time.perf_counter()
    while rounds < repeats or (
        rounds < MOST_ROUNDS and time.perf_counter() - began < seconds * rounds / (rounds + 1)
    ):
        for own, call in zip(samples, calls, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
        rounds += 1
    return [Timing(tuple(own)) for own in samples]


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: stable, ``suite.what``.
        value: the library's, in ``unit``.
        peer, peer_name: value and name of the peer.
        floor: the least value that the machine allows, in ``unit``.
        ratio: peer / ours, above 1 is faster.
        spread, peer_spread: minimum and maximum of the repeats.
        goal: a bound, if one is set.
        note: conditions of the measurement.
    """

    name: str
    value: float
    unit: str = "s"
    peer: float | None = None
    peer_name: str = ""
    floor: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    peer_spread: tuple[float, float] | None = None
    goal: Goal | None = None
    note: str = ""

    @classmethod
    def timed(
        cls,
        name: str,
        ours: Timing,
        peer: Timing | None = None,
        peer_name: str = "",
        *,
        floor: float | None = None,
        per: int = 1,
        **rest: Any,
    ) -> Row:
        """A row of seconds; ``per`` is the number of steps in a call."""

        def share(pair: tuple[float, float]) -> tuple[float, float]:
            return pair[0] / per, pair[1] / per

        return cls(
            name=name,
            value=ours.median / per,
            peer=peer.median / per if peer else None,
            peer_name=peer_name if peer else "",
            floor=floor,
            ratio=peer.median / ours.median if peer else None,
            spread=share(ours.spread),
            peer_spread=share(peer.spread) if peer else None,
            **rest,
        )

    @property
    def share(self) -> float | None:
        """Floor divided by value; 1 is optimal."""
        return self.floor / self.value if self.floor and self.unit == "s" else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return self.goal.met(self) if self.goal else None

    def as_json(self) -> str:
        keys = ("name", "value", "unit", "peer", "ratio", "floor")
        values: dict[str, Any] = {key: getattr(self, key) for key in keys}
        extra = {"peer_name": self.peer_name or None, "share_of_floor": self.share}
        extra |= {"spread": self.spread, "peer_spread": self.peer_spread, "note": self.note or None}
        if self.goal:
            figure = getattr(self, self.goal.number)
            extra |= {"goal": str(self.goal), "figure": figure, "met": self.met}
        return json.dumps(values | {key: x for key, x in extra.items() if x is not None})


def table(title: str, rows: list[Row]) -> Table:
    """The rows in 80 columns; ``remark`` has the rest."""
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("stage", no_wrap=True)
    for column in ("ours", "peer", "ratio", "floor", "share", "goal"):
        out.add_column(column, no_wrap=True, justify="right")
    out.add_column("", no_wrap=True)
    for row in rows:
        out.add_row(
            row.name.partition(".")[2],
            show(row.value, row.unit),
            show(row.peer, row.unit),
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            show(row.floor, row.unit),
            "" if row.share is None else f"{row.share:.0%}",
            str(row.goal or ""),
            {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row.met],
        )
    return out


def remark(row: Row) -> str:
    """Minimum and maximum of the repeats, name of the peer, and note of a row."""
    parts = []
    if row.spread:
        parts.append(f"ours {show_range(row.spread, row.unit)}")
    if row.peer_name:
        own = f" {show_range(row.peer_spread, row.unit)}" if row.peer_spread else ""
        parts.append(f"peer{own}: {row.peer_name}")
    return "; ".join([*parts, row.note] if row.note else parts)


def show_range(spread: tuple[float, float], unit: str) -> str:
    return f"{show(spread[0], unit)} to {show(spread[1], unit)}"


def show(value: float | None, unit: str) -> str:
    """A quantity with a readable unit."""
    if value is None:
        return ""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "s":
        scale, name = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    else:
        steps = [(1, ""), (1e-3, "k"), (1e-6, "M"), (1e-9, "G"), (1e-12, "T")]
        scale, prefix = next((s for s in reversed(steps) if abs(value) * s[0] >= 1), steps[0])
        name = prefix + unit if unit in ("B", "B/s", "FLOP/s") else unit
        scale = scale if name != unit or not prefix else 1
    return f"{value * scale:.3g} {name}"


def print_rows(console: Console, title: str, rows: list[Row]) -> None:
    """Print the table, then the remarks."""
    console.print(table(title, rows))
    for row in rows:
        if text := remark(row):
            console.print(f"[bold]{row.name.partition('.')[2]}[/]: {text}", highlight=False)


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], str]]:
    """Yield a function that states the peak memory of this process and device.

    On Linux the process's peak is reset at the start of the block; elsewhere it counts from the
    start of the process, as the device's does.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def say() -> str:
        text, device = f"process peak {process_peak() / 2**20:.0f} MiB", device_peak()
        return text + (f", device peak so far {device / 2**20:.0f} MiB" if device else "")

    yield say


def program_bytes(program: Any) -> tuple[int, int]:
    """Bytes of a compiled program's temporaries and results."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes, memory.output_size_in_bytes
