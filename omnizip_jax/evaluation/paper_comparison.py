"""Runs side by side, in the form of the paper's tables, with its own figures marked as theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnizip_jax.evaluation import paper_results as paper
from omnizip_jax.evaluation.markdown_tables import (
    NOTHING,
    percent,
    seconds,
    section,
    share,
    size,
    table,
    tera,
)

Summary = dict[str, Any]
THEIRS = "paper: "


@dataclasses.dataclass
class Entry:
    """A method with its settings, over all runs of the same weights.

    Attributes:
        name: as its first run has it.
        size: the released model that it is the size of; None for another.
        settings: of the method.
        accuracy: by benchmark.
        parts: its part of every run, with that run.
    """

    name: str
    size: str | None
    settings: dict[str, Any]
    accuracy: dict[str, Any]
    parts: list[tuple[dict[str, Any], Summary]]

    def mean(self, *path: str) -> float | None:
        """The mean over the runs of a number in them."""
        found = [value for part, _ in self.parts if (value := _dig(part, path)) is not None]
        return float(np.mean(found)) if found else None

    @property
    def kept(self) -> float | None:
        """Share of the media tokens, averaged over the layers as the paper does for FastV."""
        return self.mean("kept", "by_layer", "mean")

    @property
    def full(self) -> bool:
        return self.settings["method"] == "AllTokens"

    def right(self, benchmark: str, category: str | None = None) -> float | None:
        """The share of right answers."""
        path = (benchmark, "mean") if category is None else (benchmark, "categories", category)
        found = _dig(self.accuracy, path)
        return found if category is None or found is None else found["mean"]


def side_by_side(summaries: Sequence[Summary]) -> str:
    """Tables 1, 2, 3 and 6 and Figures 4, 6 and 7, as far as the runs give them."""
    entries = merged(summaries)
    parts = [_table_1(entries), _table_2(entries), _table_3(entries), _table_6(entries)]
    parts += [_figure_4(entries), _figure_6(summaries), _figure_7(entries), _others(entries)]
    theirs = (
        'Rows that begin with "paper" are the figures of Tao et al., not measured here. Kept '
        "shares are measured, and averaged over the layers; theirs are nominal."
    )
    return "\n\n".join([theirs, *(part for part in parts if part)])


def merged(summaries: Sequence[Summary]) -> list[Entry]:
    """One entry for each method and weights; runs of other benchmarks come together."""
    out: dict[str, Entry] = {}
    for summary in summaries:
        run = summary["run"]
        for name, part in summary["methods"].items():
            key = json.dumps([run["weights"], run["protocol"], part["settings"]], sort_keys=True)
            size = paper.SIZES.get(run["decoder"]["hidden"])
            entry = out.setdefault(key, Entry(name, size, part["settings"], {}, []))
            entry.accuracy |= part["accuracy"]
            entry.parts.append((part, summary))
    names = [entry.name for entry in out.values()]
    for entry in out.values():
        if names.count(entry.name) > 1:
            entry.name = f"{entry.parts[0][1]['run']['name']}: {entry.name}"
    return list(out.values())


def _dig(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _sizes(entries: Sequence[Entry]) -> list[str]:
    """Whose figures belong beside these; the 7B's if they are of no released size."""
    return sorted({entry.size for entry in entries if entry.size}, reverse=True) or ["7B"]


def _paper_rows(rows: paper.Rows, entries: Sequence[Entry]) -> list[list[str]]:
    return [
        [f"{THEIRS}{name}, {size}", *cells]
        for size in _sizes(entries)
        for name, *cells in rows.get(size, ())
    ]


def _of(entries: Sequence[Entry], *benchmarks: str) -> list[Entry]:
    return [e for e in entries if any(benchmark in e.accuracy for benchmark in benchmarks)]


def _table_1(entries: Sequence[Entry]) -> str:
    names = ("avut", "videomme", "shortvid")
    mine = _of(entries, *names)
    if not mine:
        return ""
    heading = ["method", "kept", "operations, eq. 9", *(f"AVUT {task}" for task in paper.AVUT)]
    heading += ["AVUT", "VideoMME", "ShortVid-Bench", "of full"]
    full = next((entry for entry in mine if entry.full), None)
    rows = []
    for entry in mine:
        shares = [
            own / all_
            for name in names
            if full and (own := entry.right(name)) is not None and (all_ := full.right(name))
        ]
        rows.append(
            [
                entry.name,
                *_budget(entry),
                *(percent(entry.right("avut", task)) for task in paper.AVUT),
                *(percent(entry.right(name)) for name in names),
                share(float(np.mean(shares))) if shares else NOTHING,
            ]
        )
    return section("Table 1", table(heading, rows + _paper_rows(paper.TABLE_1, mine)))


def _budget(entry: Entry) -> list[str]:
    return [
        share(entry.kept),
        share(entry.mean("operations", "paper_operations", "share", "median")),
    ]


def _table_2(entries: Sequence[Entry]) -> str:
    def cells(entry: Entry) -> list[str]:
        operations = entry.mean("operations", "paper_operations", "median")
        return [share(entry.kept), tera(operations)]

    return _worldsense(
        "Table 2", entries, ["kept", "operations, eq. 9, 10^12"], cells, paper.TABLE_2
    )


def _table_6(entries: Sequence[Entry]) -> str:
    def cells(entry: Entry) -> list[str]:
        rates = [str(entry.settings.get(name, NOTHING)) for name in ("rho_audio", "rho_video")]
        return [share(entry.kept), *rates]

    return _worldsense("Table 6", entries, ["kept", "rho_audio", "rho_video"], cells, paper.TABLE_6)


def _worldsense(
    title: str,
    entries: Sequence[Entry],
    names: list[str],
    cells: Callable[[Entry], list[str]],
    theirs: paper.Rows,
) -> str:
    mine = _of(entries, "worldsense")
    if not mine:
        return ""
    rows = [
        [
            entry.name,
            *cells(entry),
            *(percent(entry.right("worldsense", domain)) for domain in paper.WORLDSENSE),
            percent(entry.right("worldsense")),
        ]
        for entry in mine
    ]
    heading = ["method", *names, *paper.WORLDSENSE, "average"]
    return section(title, table(heading, rows + _paper_rows(theirs, mine)))


def _table_3(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in entries:
        peaks = [
            max(run["peak bytes"].values())
            for _, run in entry.parts
            if run["peak bytes"] and len(run["methods"]) == 1
        ]
        rights = [accuracy["mean"] for accuracy in entry.accuracy.values()]
        rows.append(
            [
                entry.name,
                size(max(peaks)) if peaks else NOTHING,
                seconds(entry.mean("seconds", "prefill", "median")),
                percent(float(np.mean(rights))) if rights else NOTHING,
                seconds(entry.mean("seconds", "latency", "median")),
            ]
        )
    heading = ["method", "peak memory", "prefill", "accuracy", "latency of an example"]
    note = (
        "The paper's on WorldSense, an A6000. Memory is given for runs of one method alone; where "
        "the device does not count its own, it is that of the process."
    )
    return section("Table 3", table(heading, rows + _paper_rows(paper.TABLE_3, entries)), note)


def _figure_4(entries: Sequence[Entry]) -> str:
    rates = {"rho_audio", "rho_video"}
    mine = [entry for entry in _of(entries, "worldsense") if rates <= entry.settings.keys()]
    if len(mine) < 2:
        return ""
    rows = [
        [
            entry.name,
            str(entry.settings["rho_audio"]),
            str(entry.settings["rho_video"]),
            share(entry.kept),
            percent(entry.right("worldsense")),
        ]
        for entry in sorted(mine, key=lambda e: (e.settings["rho_audio"], e.settings["rho_video"]))
    ]
    heading = ["method", "rho_audio", "rho_video", "kept", "WorldSense"]
    return section("Figure 4", table(heading, rows), f"{THEIRS}{paper.FIGURES[4]}.")


def _figure_6(summaries: Sequence[Summary]) -> str:
    """Prefill with all tokens over prefill, by benchmark, on the same device."""
    full: dict[tuple[str, str], float] = {}
    times = []
    for summary in summaries:
        device = summary["sessions"][-1]["device"] if summary["sessions"] else ""
        for name, part in summary["methods"].items():
            prefill = _dig(part, ("seconds", "prefill", "median"))
            for benchmark in part["accuracy"] if prefill else ():
                times.append((benchmark, device, name, prefill))
                if part["settings"]["method"] == "AllTokens":
                    full[benchmark, device] = prefill
    rows = [
        [name, benchmark, seconds(prefill), f"{full[benchmark, device] / prefill:.2f}x"]
        for benchmark, device, name, prefill in times
        if (benchmark, device) in full
    ]
    if len(rows) < 2:
        return ""
    heading = ["method", "benchmark", "prefill", "against all tokens"]
    return section("Figure 6", table(heading, rows), f"{THEIRS}{paper.FIGURES[6]}.")


def _figure_7(entries: Sequence[Entry]) -> str:
    mine = [entry for entry in entries if "merge_size" in entry.settings]
    if len({entry.settings["merge_size"] for entry in mine}) < 2:
        return ""
    benchmarks = list(dict.fromkeys(name for entry in mine for name in entry.accuracy))
    rows = [
        [
            entry.name,
            str(entry.settings["merge_size"]),
            share(entry.kept),
            *(percent(entry.right(benchmark)) for benchmark in benchmarks),
        ]
        for entry in sorted(mine, key=lambda entry: entry.settings["merge_size"])
    ]
    heading = ["method", "G", "kept", *benchmarks]
    return section("Figure 7", table(heading, rows), f"{THEIRS}{paper.FIGURES[7]}.")


def _others(entries: Sequence[Entry]) -> str:
    """Benchmarks that the paper does not have."""
    known = {"avut", "videomme", "shortvid", "worldsense"}
    names = list(dict.fromkeys(name for e in entries for name in e.accuracy if name not in known))
    if not names:
        return ""
    rows = [
        [entry.name, *_budget(entry), *(percent(_overall(entry, name)) for name in names)]
        for entry in entries
    ]
    heading = ["method", "kept", "operations, eq. 9", *names]
    return section("Other questions", table(heading, rows))


def _overall(entry: Entry, benchmark: str) -> float | None:
    grouped = _dig(entry.accuracy, (benchmark, "mean of groups"))
    return entry.right(benchmark) if grouped is None else grouped
