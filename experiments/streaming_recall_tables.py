"""Summary, tables and curves of the stream memory study: accuracy by age of the object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.markdown import table
from experiments.streaming_recall_clips import ANSWERS, CHANCE, Ages
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.markdown_tables import difference, share, with_interval

UNBOUNDED = "unbounded"
Summary = dict[str, dict[str, Any]]

COLOURS = ("#d1663d", "#2a7f9e", "#6aa84f", "#9467bd", "#bcbd22", "#c2185b")
LINES = ("-", "--", ":", "-.")


def row_name(memory: str, keep: float) -> str:
    """Name of a retention policy at a kept share in results and tables."""
    return f"{memory}, {keep:.0%}"


def summarise(watched: Iterable[Mapping[str, Any]]) -> Summary:
    """Accuracy of each row by age, and by kind and age, as plain numbers.

    Every mean by age has "low" and "high", a bootstrap 95 % interval over streams. So does the
    difference from an unbounded cache at the same kept share, where that was measured, over the
    streams of both.

    Args:
        watched: lines of a results file of ``stream_memory``.
    """
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(watched, key=lambda one: one["stream"]):
        by_row.setdefault(one["row"], []).append(one)
    out: Summary = {}
    for name, rows in by_row.items():
        answers = [(one["stream"], *answer) for one in rows for answer in one["answers"]]
        ages = list(dict.fromkeys(age for _, age, *_ in answers))
        reference = _by_question(by_row.get(f"{UNBOUNDED}, {name.split(', ')[-1]}", []))
        own = _by_question(rows)
        shared = [key for key in own if key in reference and not name.startswith(UNBOUNDED)]
        out[name] = {
            "streams": len(rows),
            "kept": round(float(np.mean([one["kept"] for one in rows])), 4),
            "slots": round(float(np.mean([one["slots"] for one in rows])), 1),
            "ages": {
                age: _mean([(stream, right) for stream, a, _, right in answers if a == age])
                for age in ages
            },
            "minus_unbounded": {
                age: _mean([(k[0], own[k] - reference[k]) for k in shared if k[1] == age])
                for age in ages
                if shared
            },
            "kinds": {
                kind: {
                    age: round(
                        float(np.mean([x for _, a, k, x in answers if (a, k) == (age, kind)])), 4
                    )
                    for age in ages
                }
                for kind in ANSWERS
            },
        }
    return out


def _by_question(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str, str], int]:
    return {
        (one["stream"], age, kind): right for one in rows for age, kind, right in one["answers"]
    }


def _mean(values: Sequence[tuple[int, float]]) -> dict[str, float]:
    mean = mean_over([value for _, value in values], [str(stream) for stream, _ in values])
    return {name: round(getattr(mean, name), 4) for name in ("mean", "low", "high")}


def ages_table(summary: Summary) -> str:
    """Table of accuracy by age, with intervals."""
    ages = _ages(summary)
    rows = [
        [name, str(row["streams"]), share(row["kept"]), f"{row['slots']:.0f}"]
        + [with_interval(row["ages"].get(age)) for age in ages]
        for name, row in summary.items()
    ]
    return table(["memory", "streams", "kept", "slots in use", *ages], rows)


def differences_table(summary: Summary) -> str:
    """Table of differences from an unbounded cache at the same kept share, or no text."""
    ages = _ages(summary)
    rows = [
        [name, *(difference(row["minus_unbounded"].get(age)) for age in ages)]
        for name, row in summary.items()
        if row["minus_unbounded"]
    ]
    return table(["memory", *ages], rows) if rows else ""


def kinds_table(row: Mapping[str, Any]) -> str:
    """Table of the accuracy of one row by kind of question and age."""
    rows = [
        [kind, share(1 / ANSWERS[kind]), *map(share, ages.values())]
        for kind, ages in row["kinds"].items()
    ]
    return table(["question", "chance", *row["ages"]], rows)


def _ages(summary: Summary) -> list[str]:
    return list(dict.fromkeys(age for row in summary.values() for age in row["ages"]))


def plot_memory(summary: Summary, ages: Ages) -> Figure:
    """Plot accuracy against age, a line per row; bands are 95 % intervals.

    The colour shows the retention policy, the line style the kept share.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    names = [name.split(", ") for name in summary]
    memories, shares = (list(dict.fromkeys(column)) for column in zip(*names, strict=True))
    for (memory, keep), row in zip(names, summary.values(), strict=True):
        place = [float(np.mean(ages[age])) for age in row["ages"]]
        mean, low, high = np.array([list(cell.values()) for cell in row["ages"].values()]).T
        colour = COLOURS[memories.index(memory) % len(COLOURS)]
        style = LINES[shares.index(keep) % len(LINES)]
        axes.plot(place, mean, style, color=colour, marker="o", label=f"{memory}, {keep}")
        axes.fill_between(place, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.axhline(CHANCE, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([float(np.mean(reach)) for reach in ages.values()], labels=list(ages))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="age of the object", ylabel="right answers (dotted: chance)")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    return figure
