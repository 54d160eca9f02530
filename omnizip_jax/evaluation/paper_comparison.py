"""Several runs in the form of the paper's tables, beside the paper's own results."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
Rows = dict[str, tuple[tuple[str, ...], ...]]  # the rows of a table by model


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    lines = [line.partition(";") for line in text.splitlines()]
    return tuple((name, *cells.split()) for name, _, cells in lines)


_PAPER = tomllib.loads(Path(__file__).with_name("paper_results.toml").read_text(encoding="utf-8"))
SIZES = {int(width): model for width, model in _PAPER["sizes"].items()}
AVUT, WORLDSENSE = _PAPER["AVUT"], _PAPER["WORLDSENSE"]
TABLES: dict[int, Rows] = {
    int(number): {model: _rows(text) for model, text in models.items()}
    for number, models in _PAPER["tables"].items()
}
FIGURES = {int(number): text for number, text in _PAPER["figures"].items()}
PAPER = "paper: "
# Of a run, beside its settings; those of the methods are compared one by one.
NOT_SETTINGS = {"checkpoint", "questions", "runs", "methods", "name", "file"}
RATES = ("rho_audio", "rho_video")
TABLE_1 = {"avut": "AVUT", "videomme": "VideoMME", "shortvid": "ShortVid-Bench"}


@dataclasses.dataclass
class MergedMethod:
    """A method over runs that agree in all settings and ask about different benchmarks.

    Attributes:
        name: in its first run.
        run: settings of the runs that may change an answer, as JSON.
        size: the released model with the same width; None for another.
        parts: its summary in every run, and that run's summary.
    """

    name: str
    run: str
    size: str | None
    parts: list[tuple[dict[str, Any], Summary]]

    @property
    def settings(self) -> dict[str, Any]:
        return self.parts[0][0]["settings"]

    @property
    def asked(self) -> dict[str, str]:
        """Digest of the questions of each benchmark."""
        return {name: digest for part, _ in self.parts for name, digest in part["asked"].items()}

    @property
    def accuracy(self) -> dict[str, Any]:
        """By benchmark."""
        return {name: each for part, _ in self.parts for name, each in part["accuracy"].items()}

    @property
    def full(self) -> bool:
        """Whether it keeps all tokens of both modalities."""
        kept = (self.settings.get(modality, True) for modality in ("audio", "video"))
        return self.settings["method"] == "AllTokens" and all(kept)

    def mean(self, *path: str) -> float | None:
        """The mean over the runs of a number in them."""
        found = [value for part, _ in self.parts if (value := _get(part, path)) is not None]
        return float(np.mean(found)) if found else None

    def seconds(self, stage: str) -> str:
        """The mean median of a stage, if all runs were timed under the same conditions."""
        conditions = {each for _, summary in self.parts for each in _timing_conditions(summary)}
        return MISSING if len(conditions) > 1 else seconds(self.mean("seconds", stage, "median"))

    def accuracy_of(self, benchmark: str, category: str | None = None) -> float | None:
        path = (benchmark,) if category is None else (benchmark, "categories", category)
        return _get(self.accuracy, (*path, "mean"))


Columns = dict[str, Callable[[MergedMethod], str]]  # the cells of a table by heading


def compare_with_paper(summaries: Sequence[Summary]) -> str:
    """Tables 1, 2, 3 and 6 and Figures 4, 6 and 7, those for which the runs have data."""
    methods = merge_runs(summaries)
    worldsense = _about(methods, "worldsense")
    runs = [_run_cells(summary) for summary in summaries]
    operations = {
        "operations, eq. 9, 10^12": lambda each: tera(
            each.mean("operations", "paper_operations", "median")
        )
    }
    domains: Columns = {name: _accuracy("worldsense", name) for name in WORLDSENSE}
    domains["average"] = _accuracy("worldsense")
    rates: Columns = {name: _setting(name) for name in RATES}
    parts = [
        'Rows that begin with "paper" are the results of Tao et al., not measured here. Kept '
        "shares are measured, and averaged over the layers; theirs are nominal. A row has the runs "
        "that agree in all settings.",
        aligned_table(list(runs[0]), [list(each.values()) for each in runs]) if runs else "",
        _table_1(methods),
        _table("Table 2", worldsense, KEPT | operations | domains, TABLES[2]),
        _table_3(methods),
        _table("Table 6", worldsense, KEPT | rates | domains, TABLES[6]),
        _figure_4(worldsense, rates),
        _figure_6(methods),
        _figure_7(methods),
        _other_benchmarks(methods),
    ]
    return "\n\n".join(part for part in parts if part)


def merge_runs(summaries: Sequence[Summary]) -> list[MergedMethod]:
    """The methods of all runs; runs that agree in all settings and share no benchmark are merged.

    Where a name occurs several times, that of the run is put before it.
    """
    out: list[MergedMethod] = []
    for summary in summaries:
        settings = {key: value for key, value in summary["run"].items() if key not in NOT_SETTINGS}
        run = json.dumps(settings, sort_keys=True)
        size = SIZES.get(settings["decoder"]["hidden"])
        for name, part in summary["methods"].items():
            name += " (partial)" * part["partial"]
            new = MergedMethod(name, run, size, [(part, summary)])
            for each in out:
                equal = (each.run, each.settings) == (run, new.settings)
                if equal and each.asked.keys().isdisjoint(new.asked):
                    each.parts += new.parts
                    break
            else:
                out.append(new)
    for label in ("name", "file"):  # files in several folders may have the same name
        names = [method.name for method in out]
        for method in out:
            if names.count(method.name) > 1:
                method.name = f"{method.parts[0][1]['run'][label]}: {method.name}"
    return out


def _about(methods: Sequence[MergedMethod], *benchmarks: str) -> list[MergedMethod]:
    """The methods over their runs about one of these benchmarks."""
    out = []
    for method in methods:
        parts = [each for each in method.parts if not {*each[0]["accuracy"]}.isdisjoint(benchmarks)]
        if parts:
            out.append(dataclasses.replace(method, parts=parts))
    return out


def _timing_conditions(summary: Summary) -> set[tuple[Any, ...]]:
    return {(each["device"], each["one by one"]) for each in summary["sessions"]}


def _run_cells(summary: Summary) -> dict[str, str]:
    """The settings of a run, and what limits it, by heading."""
    run, stream = summary["run"], summary["run"].get("stream")
    accuracies = [
        each for part in summary["methods"].values() for each in part["accuracy"].values()
    ]
    unread = sum(each["unread"] for each in accuracies)
    return {
        "run": run["name"],
        "checkpoint": run.get("checkpoint") or MISSING,
        "dtype": run["dtype"],
        "protocol": run["protocol"],
        "frames": str(run.get("max_frames") or "all"),
        "grid": str(_get(run, ("window", "grid_slots")) or MISSING),
        "reads": " and ".join(name for name in ("audio", "video") if run.get(name, True)),
        "stream": f"{stream['memory']}, {stream['capacity']}" if stream else MISSING,
        "remarks": "; ".join(summary["remarks"] + [f"{unread} replies unread"] * bool(unread))
        or MISSING,
    }


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
    theirs: Rows | None = None,
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
    own = _about(methods, *TABLE_1)

    def of_full(method: MergedMethod) -> str:
        """Over all tokens under the same settings, on the same questions."""
        shares = [
            value / whole
            for name in TABLE_1
            for full in own
            if full.full and full.run == method.run
            if name in method.asked and full.asked.get(name) == method.asked[name]
            if (whole := full.accuracy_of(name))
            if (value := method.accuracy_of(name)) is not None
        ]
        return share(float(np.mean(shares))) if shares else MISSING

    tasks: Columns = {f"AVUT {task}": _accuracy("avut", task) for task in AVUT}
    averages: Columns = {heading: _accuracy(name) for name, heading in TABLE_1.items()}
    columns = BUDGET | tasks | averages | {"of full": of_full}
    return _table("Table 1", own, columns, TABLES[1])


def _table_3(methods: Sequence[MergedMethod]) -> str:
    def peak(method: MergedMethod) -> str:
        alone = [each["peak bytes"] for _, each in method.parts if len(each["run"]["methods"]) == 1]
        return size(max((max(peaks.values()) for peaks in alone if peaks), default=None))

    def accuracy(method: MergedMethod) -> str:
        values = [each["mean"] for each in method.accuracy.values()]
        return percent(float(np.mean(values)) if values else None)

    columns: Columns = {
        "peak memory": peak,
        "prefill": lambda method: method.seconds("prefill"),
        "accuracy": accuracy,
        "latency of an example": lambda method: method.seconds("latency"),
    }
    note = (
        "The paper's on WorldSense, an A6000. Memory is given for runs of one method alone; where "
        "the device does not report its own, it is that of the process."
    )
    return _table("Table 3", methods, columns, TABLES[3], note)


def _figure_4(methods: Sequence[MergedMethod], rates: Columns) -> str:
    own = [method for method in methods if method.settings.keys() >= set(RATES)]
    own.sort(key=lambda method: [method.settings[name] for name in RATES])
    columns = rates | KEPT | {"WorldSense": _accuracy("worldsense")}
    note = f"{PAPER}{FIGURES[4]}."
    return _table("Figure 4", own, columns, note=note) if len(own) > 1 else ""


def _figure_6(methods: Sequence[MergedMethod]) -> str:
    """Prefill time of all tokens over that of each method, under the same conditions."""
    times, full = [], {}
    for method in methods:
        for part, summary in method.parts:
            prefill = _get(part, ("seconds", "prefill", "median"))
            conditions = _timing_conditions(summary)
            if prefill and len(conditions) == 1:
                key = method.run, json.dumps(part["asked"]), *conditions
                times.append((key, method.name, ", ".join(part["asked"]), prefill))
                if method.full:
                    full[key] = prefill
    rows = [
        [name, benchmarks, seconds(prefill), f"{full[key] / prefill:.2f}x"]
        for key, name, benchmarks, prefill in times
        if key in full
    ]
    if len(rows) < 2:
        return ""
    heading = ["method", "benchmark", "prefill", "against all tokens"]
    return section("Figure 6", aligned_table(heading, rows), f"{PAPER}{FIGURES[6]}.")


def _figure_7(methods: Sequence[MergedMethod]) -> str:
    own = [method for method in methods if "merge_size" in method.settings]
    if len({method.settings["merge_size"] for method in own}) < 2:
        return ""
    own.sort(key=lambda method: method.settings["merge_size"])
    accuracies: Columns = {name: _accuracy(name) for each in own for name in each.accuracy}
    columns = {"G": _setting("merge_size")} | KEPT | accuracies
    return _table("Figure 7", own, columns, note=f"{PAPER}{FIGURES[7]}.")


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
