"""Several runs in the form of the paper's tables, beside the paper's own results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from omnizip_jax.evaluation import paper_results as paper
from omnizip_jax.evaluation.markdown_tables import (
    MISSING,
    aligned_table,
    percent,
    seconds,
    section,
    share,
    size,
    tera,
)

Summary = dict[str, Any]
PAPER = "paper: "
RATES = ("rho_audio", "rho_video")
TABLE_1 = {"avut": "AVUT", "videomme": "VideoMME", "shortvid": "ShortVid-Bench"}


@dataclasses.dataclass
class MergedMethod:
    """A method with its settings, over all runs with the same weights and protocol.

    Attributes:
        name: in its first run.
        size: the released model with the same width; None for another.
        settings: of the method.
        accuracy: by benchmark.
        parts: its summary in every run, and that run's summary.
    """

    name: str
    size: str | None
    settings: dict[str, Any]
    accuracy: dict[str, Any]
    parts: list[tuple[dict[str, Any], Summary]]

    def mean(self, *path: str) -> float | None:
        """The mean over the runs of a number in them."""
        found = [value for part, _ in self.parts if (value := _get(part, path)) is not None]
        return float(np.mean(found)) if found else None

    @property
    def full(self) -> bool:
        return self.settings["method"] == "AllTokens"

    def accuracy_of(self, benchmark: str, category: str | None = None) -> float | None:
        path = (benchmark,) if category is None else (benchmark, "categories", category)
        return _get(self.accuracy, (*path, "mean"))


Columns = dict[str, Callable[[MergedMethod], str]]  # the cells of a table by heading


def compare_with_paper(summaries: Sequence[Summary]) -> str:
    """Tables 1, 2, 3 and 6 and Figures 4, 6 and 7, those for which the runs have data."""
    methods = merge_runs(summaries)
    worldsense = [method for method in methods if "worldsense" in method.accuracy]
    operations = {
        "operations, eq. 9, 10^12": lambda each: tera(
            each.mean("operations", "paper_operations", "median")
        )
    }
    domains: Columns = {name: _accuracy("worldsense", name) for name in paper.WORLDSENSE}
    domains["average"] = _accuracy("worldsense")
    rates: Columns = {name: _setting(name) for name in RATES}
    parts = [
        'Rows that begin with "paper" are the results of Tao et al., not measured here. Kept '
        "shares are measured, and averaged over the layers; theirs are nominal.",
        _table_1(methods),
        _table("Table 2", worldsense, KEPT | operations | domains, paper.TABLES[2]),
        _table_3(methods),
        _table("Table 6", worldsense, KEPT | rates | domains, paper.TABLES[6]),
        _figure_4(worldsense, rates),
        _figure_6(summaries),
        _figure_7(methods),
        _other_benchmarks(methods),
    ]
    return "\n\n".join(part for part in parts if part)


def merge_runs(summaries: Sequence[Summary]) -> list[MergedMethod]:
    """One entry for each method, weights and protocol, with the benchmarks of all runs."""
    out: dict[str, MergedMethod] = {}
    for summary in summaries:
        run = summary["run"]
        for name, part in summary["methods"].items():
            key = json.dumps([run["weights"], run["protocol"], part["settings"]], sort_keys=True)
            size = paper.SIZES.get(run["decoder"]["hidden"])
            merged = out.setdefault(key, MergedMethod(name, size, part["settings"], {}, []))
            merged.accuracy |= part["accuracy"]
            merged.parts.append((part, summary))
    names = [merged.name for merged in out.values()]
    for merged in out.values():
        if names.count(merged.name) > 1:
            merged.name = f"{merged.parts[0][1]['run']['name']}: {merged.name}"
    return list(out.values())


def _get(tree: Any, path: Iterable[str]) -> Any:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _accuracy(*path: str) -> Callable[[MergedMethod], str]:
    return lambda method: percent(method.accuracy_of(*path))


def _setting(name: str) -> Callable[[MergedMethod], str]:
    return lambda method: str(method.settings.get(name, MISSING))


# Averaged over the layers, as the paper does for FastV.
KEPT: Columns = {"kept": lambda method: share(method.mean("kept", "by_layer", "mean"))}
BUDGET: Columns = KEPT | {
    "operations, eq. 9": lambda method: share(
        method.mean("operations", "paper_operations", "share", "median")
    )
}


def _table(
    title: str,
    methods: Sequence[MergedMethod],
    columns: Columns,
    theirs: paper.Rows | None = None,
    note: str = "",
) -> str:
    """A section with a row for each method, then the paper's rows for models of the same size."""
    if not methods:
        return ""
    rows = [[method.name, *(cell(method) for cell in columns.values())] for method in methods]
    for model in sorted({each.size for each in methods if each.size}, reverse=True) or ["7B"]:
        for name, *cells in (theirs or {}).get(model, ()):
            rows.append([f"{PAPER}{name}, {model}", *cells])
    return section(title, aligned_table(["method", *columns], rows), note)


def _table_1(methods: Sequence[MergedMethod]) -> str:
    own = [method for method in methods if not TABLE_1.keys().isdisjoint(method.accuracy)]
    full = next((method for method in own if method.full), None)

    def of_full(method: MergedMethod) -> str:
        pairs = [(method.accuracy_of(name), full and full.accuracy_of(name)) for name in TABLE_1]
        shares = [value / whole for value, whole in pairs if value is not None and whole]
        return share(float(np.mean(shares))) if shares else MISSING

    tasks: Columns = {f"AVUT {task}": _accuracy("avut", task) for task in paper.AVUT}
    averages: Columns = {heading: _accuracy(name) for name, heading in TABLE_1.items()}
    columns = BUDGET | tasks | averages | {"of full": of_full}
    return _table("Table 1", own, columns, paper.TABLES[1])


def _table_3(methods: Sequence[MergedMethod]) -> str:
    def peak(method: MergedMethod) -> str:
        alone = [run["peak bytes"] for _, run in method.parts if len(run["methods"]) == 1]
        return size(max((max(peaks.values()) for peaks in alone if peaks), default=None))

    def accuracy(method: MergedMethod) -> str:
        values = [each["mean"] for each in method.accuracy.values()]
        return percent(float(np.mean(values)) if values else None)

    columns: Columns = {
        "peak memory": peak,
        "prefill": lambda method: seconds(method.mean("seconds", "prefill", "median")),
        "accuracy": accuracy,
        "latency of an example": lambda method: seconds(
            method.mean("seconds", "latency", "median")
        ),
    }
    note = (
        "The paper's on WorldSense, an A6000. Memory is given for runs of one method alone; where "
        "the device does not report its own, it is that of the process."
    )
    return _table("Table 3", methods, columns, paper.TABLES[3], note)


def _figure_4(methods: Sequence[MergedMethod], rates: Columns) -> str:
    own = [method for method in methods if method.settings.keys() >= set(RATES)]
    own.sort(key=lambda method: [method.settings[name] for name in RATES])
    columns = rates | KEPT | {"WorldSense": _accuracy("worldsense")}
    note = f"{PAPER}{paper.FIGURES[4]}."
    return _table("Figure 4", own, columns, note=note) if len(own) > 1 else ""


def _figure_6(summaries: Sequence[Summary]) -> str:
    """Prefill time of all tokens over that of each method, by benchmark, on the same device."""
    full: dict[tuple[str, str], float] = {}
    times = []
    for summary in summaries:
        device = summary["sessions"][-1]["device"] if summary["sessions"] else ""
        for name, part in summary["methods"].items():
            prefill = _get(part, ("seconds", "prefill", "median"))
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
    return section("Figure 6", aligned_table(heading, rows), f"{PAPER}{paper.FIGURES[6]}.")


def _figure_7(methods: Sequence[MergedMethod]) -> str:
    own = [method for method in methods if "merge_size" in method.settings]
    if len({method.settings["merge_size"] for method in own}) < 2:
        return ""
    own.sort(key=lambda method: method.settings["merge_size"])
    accuracies: Columns = {name: _accuracy(name) for each in own for name in each.accuracy}
    columns = {"G": _setting("merge_size")} | KEPT | accuracies
    return _table("Figure 7", own, columns, note=f"{PAPER}{paper.FIGURES[7]}.")


def _other_benchmarks(methods: Sequence[MergedMethod]) -> str:
    """Benchmarks that the paper does not have."""

    def score(benchmark: str) -> Callable[[MergedMethod], str]:
        def cell(method: MergedMethod) -> str:
            grouped = _get(method.accuracy, (benchmark, "mean of groups"))
            return percent(method.accuracy_of(benchmark) if grouped is None else grouped)

        return cell

    known = {*TABLE_1, "worldsense"}
    columns = {name: score(name) for each in methods for name in each.accuracy if name not in known}
    return _table("Other questions", methods, BUDGET | columns) if columns else ""
