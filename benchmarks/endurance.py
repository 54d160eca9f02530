"""``python -m benchmarks.endurance``: check that time and memory are constant over a long stream.

The tiny model processes hours of video in minutes. It is no suite: the result is yes or no.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import psutil
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.presets import PRESETS, default_dtype, random_params, random_windows
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.evaluation.hardware import process_peak
from omnizip_jax.inference import kv_cache_capacity as kv_cache
from omnizip_jax.inference import prefill, streaming
from omnizip_jax.inference.context import Memory
from omnizip_jax.inference.generation import ask
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

QUESTION = "What happens?"
HEADINGS = (
    "windows",
    "a window",
    "work",
    "process",
    "fill",
    "position",
    "units",
    "evicted",
    "programs",
)
ASK_EVERY = 50  # windows; every other time the turn is kept


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number of consecutive windows.

    Attributes:
        windows: fed so far.
        seconds: median wall time per window.
        work: mean processor time per window, all threads; a busy machine changes it little.
        rss: resident bytes of the process at the end.
        fill: minimum and maximum share of the cache in use.
        position: greatest position at which a window began.
        units: windows and turns with kept tokens at the end.
        evictions: number of evictions.
        programs: compiled programs of the stream so far.
    """

    windows: int
    seconds: float
    work: float
    rss: int
    fill: tuple[float, float]
    position: int
    units: int
    evictions: int
    programs: int


def endure(
    params: Params,
    windows: list[Window],
    count: int,
    every: int,
    kind: Memory,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
    capacity: int = 2048,
) -> Iterator[Interval]:
    """Feed ``count`` windows in random order, ask regularly, and report every ``every`` windows."""
    state = streaming.init_stream(
        params, OmniZipConfig(), capacity=capacity, memory=kind, text_slots=192, spec=spec
    )
    order = np.random.default_rng(0).integers(0, len(windows), count)
    seconds, work, fills, position, evictions = [], [], [], 0, 0
    for number, choice in enumerate(order, start=1):
        length = int(state.cache.length)
        began, worked = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(streaming.feed(params, state, windows[choice]))
        seconds.append(time.perf_counter() - began)
        work.append(time.process_time() - worked)
        evictions += int(state.cache.length) < length
        fills.append(state.fill)
        position = max(position, int(state.state.time))
        if number % ASK_EVERY == 0:
            keep = number % (2 * ASK_EVERY) == 0
            _, state = ask(params, state, QUESTION, keep=keep, max_new_tokens=8)
        if number % every == 0:
            gc.collect()
            used = np.asarray(state.state.slots.unit)[: int(state.cache.length)]
            yield Interval(
                windows=number,
                seconds=statistics.median(seconds),
                work=statistics.fmean(work),
                rss=psutil.Process().memory_info().rss,
                fill=(min(fills), max(fills)),
                position=position,
                units=len(np.unique(used)),
                evictions=evictions,
                programs=programs(),
            )
            seconds, work, fills, position, evictions = [], [], [], 0, 0


def programs() -> int:
    """Number of compiled programs of a stream."""
    functions: tuple[Any, ...] = (streaming._feed, prefill.append_text, kv_cache._evict)
    return sum(function._cache_size() for function in functions)


def verdict(intervals: list[Interval]) -> dict[str, bool]:
    """Checks from the second interval on; the first one compiles and fills the cache."""
    steady = intervals[1:]
    first, last = steady[0], steady[-1]
    return {
        "the process does not grow (by 2 % at most)": last.rss <= 1.02 * first.rss,
        "the work per window is constant (by 10 % at most)": last.work <= 1.1 * first.work,
        "positions stay where they are": max(s.position for s in steady[1:] or steady)
        <= 1.1 * first.position,
        "the cache never overflows": max(s.fill[1] for s in intervals) <= 1,
        "nothing is compiled any more": last.programs == first.programs,
    }


def table(kind: str, intervals: list[Interval]) -> Table:
    out = Table(title=f'memory="{kind}"', title_justify="left", box=SIMPLE, padding=0)
    for heading in HEADINGS:
        out.add_column(heading, justify="right", no_wrap=True)
    for s in intervals:
        out.add_row(
            f"{s.windows:,}",
            f"{s.seconds * 1e3:.1f} ms",
            f"{s.work * 1e3:.1f} ms",
            f"{s.rss / 2**20:.1f} MiB",
            f"{s.fill[0]:.0%}-{s.fill[1]:.0%}",
            str(s.position),
            str(s.units),
            str(s.evictions),
            str(s.programs),
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000, help="windows to a line")
    parser.add_argument("--memory", choices=["recent", "fading"], help="one of them only")
    arguments = parser.parse_args()
    if arguments.every < 1 or arguments.windows < 2 * arguments.every:
        parser.error("--windows must be at least twice --every")
    console = Console()
    console.print(machine.describe(), highlight=False)
    params = random_params(PRESETS[arguments.preset].model, default_dtype())
    clip = random_windows(8, params.config)
    windows = [jax.tree.map(lambda x, i=i: x[i], clip) for i in range(8)]
    failed = False
    kinds: list[Memory] = [arguments.memory] if arguments.memory else ["recent", "fading"]
    for kind in kinds:
        intervals = []
        for interval in endure(params, windows, arguments.windows, arguments.every, kind):
            intervals.append(interval)
            console.print(
                f"[dim]{kind}: {interval.windows:,} windows, {interval.work * 1e3:.1f} ms of work "
                f"a window, {interval.rss / 2**20:.1f} MiB[/]",
                highlight=False,
            )
        console.print(table(kind, intervals))
        console.print(f"peak of the process {process_peak() / 2**20:.0f} MiB", highlight=False)
        for claim, holds in verdict(intervals).items():
            console.print(f"{'[green]yes[/]' if holds else '[red]NO[/]'}  {claim}")
            failed |= not holds
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
