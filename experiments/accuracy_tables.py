"""Summary, tables and curves of the accuracy measurement, as written to the documentation.

Tables of ``accuracy.md`` are replaced between two comments; the other text is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from experiments.accuracy_questions import QUESTION_SETS
from experiments.accuracy_results import Measurement
from experiments.markdown import table
from experiments.measured_methods import FULL, METHODS, ORACLE, method_of, row_name
from experiments.oracle_methods import BestSample
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.decoder_cost import cost_of
from omnizip_jax.evaluation.markdown_tables import (
    MISSING,
    difference,
    share,
    with_interval,
)
from omnizip_jax.inference.generation import TokenCounts
from omnizip_jax.models.registry import Config
from omnizip_jax.testbed.clip_questions import FAMILIES
from omnizip_jax.testbed.synthetic_clips import SPEC

# "clips", "questions" per clip, and "rows" by name, of a difficulty.
Summary = dict[str, Any]
Rows = dict[str, dict[str, Any]]
COUNTS = ("operations", "paper_operations", "cache_bytes")  # relative to all tokens
SHORT = (0.25, 0.15)  # kept shares in the short tables
LEADING = "surprise"  # the method that others are compared with
# Methods in the table of retained accuracy, and in the comparison with Surprise.
RETAINED = (
    LEADING,
    "surprise, streaming",
    "surprise, question-guided",
    "omnizip",
    "vidcom2",
    "visionzip",
    "random",
    "oracle",
    "surprise, best of 16",
)
RIVALS = ("vidcom2", "omnizip", "omnizip, published", "seats")


def summarise(measured: Measurement, methods: Mapping[str, Method], config: Config) -> Summary:
    """Accuracy, difference from all tokens, and cost by row, as plain numbers.

    Operations and cache bytes are relative to all tokens. Every mean has "low" and "high", a
    bootstrap 95 % interval over clips. Differences are paired: from all tokens, from Surprise, and
    from the method of which a row is a variant.
    """
    rows: Rows = {}
    scores = {name: score(methods[name], right) for name, right in measured.right.items()}
    every = np.ones_like(measured.kinds, bool)
    groups = {"all": every} | {family: measured.families == family for family in FAMILIES}
    groups = {name: mask for name, mask in groups.items() if mask.any()}
    lengths = np.unique(measured.windows)
    for name, means in scores.items():
        lost = means - scores[FULL]
        rows[name] = {
            "right": {group: _mean(means, mask) for group, mask in groups.items()},
            "minus_full": {group: _mean(lost, mask) for group, mask in groups.items()},
            "kinds": {
                kind: round(float(means[measured.kinds == kind].mean()), 4)
                for kind in sorted(set(measured.kinds.ravel().tolist()))
            },
            "minus": {
                other: _mean(means - scores[other], every)
                for other in _others(name)
                if other in scores
            },
            "cost": _cost(config, methods[name], measured, name),
        }
        if len(lengths) > 1:
            rows[name]["lengths"] = {
                f"{windows * SPEC.seconds} s": _mean(
                    means, every & (measured.windows == windows)[:, None]
                )
                for windows in lengths.tolist()
            }
    whole = dict(rows[FULL]["cost"])
    for row in rows.values():
        spent = row["cost"]
        row["cost"] |= {name: round(spent[name] / whole[name], 4) for name in COUNTS}
    clips, questions = measured.kinds.shape
    return {"clips": clips, "questions": questions, "rows": rows}


def score(
    method: Method, right: Bool[np.ndarray, "clips seeds questions"]
) -> Float[np.ndarray, "clips questions"]:
    """Share of the seeds with a right answer; of ``BestSample``, that of the best seed."""
    if isinstance(method, BestSample):
        best = right.sum(2).argmax(1)
        return right[np.arange(len(right)), best].astype(float)
    return right.mean(1)


def _others(name: str) -> list[str]:
    """Rows that a row is compared with: the method of which it is a variant, and Surprise."""
    method, bar, keep = name.partition(" | ")
    if not bar:
        return []
    others = dict.fromkeys((method.split(",")[0], LEADING))
    return [f"{other}{bar}{keep}" for other in others if other != method]


def _cost(config: Config, method: Method, measured: Measurement, name: str) -> dict[str, float]:
    """Mean cost over the clips, from the mean counts of each length."""
    shares = ("audio", "video", "kept", "audio_by_layer", "video_by_layer", "by_layer")
    costs, weights = [], []
    for windows in np.unique(measured.windows).tolist():
        equal = measured.windows == windows
        kept = np.rint(measured.kept[name][equal].mean(0)).astype(int).tolist()
        (audio, video), *stages = kept
        counts = TokenCounts(
            audio=windows * SPEC.audio_slots,
            audio_kept=audio,
            video=windows * SPEC.video_slots,
            video_kept=video,
            text=round(float(measured.text[equal].mean())),
            generated=1,
        )
        spent = cost_of(config.text, method, counts, [(a, v) for a, v in stages])
        costs.append([getattr(spent, part) for part in (*shares, *COUNTS)])
        weights.append(equal.sum())
    means = np.average(costs, axis=0, weights=weights).tolist()
    return {part: round(mean, 4) for part, mean in zip((*shares, *COUNTS), means, strict=True)}


def _mean(
    values: Float[np.ndarray, "clips questions"], mask: Bool[np.ndarray, "clips questions"]
) -> dict[str, float]:
    clips = np.nonzero(mask)[0]
    mean = mean_over(values[mask].tolist(), [str(clip) for clip in clips])
    return {name: round(getattr(mean, name), 4) for name in ("mean", "low", "high")}


def accuracy_table(rows: Rows) -> str:
    """Table of accuracy by family and difference from all tokens with its interval."""
    heading = ["method", "kept", "layers", "operations", *FAMILIES, "all"]
    heading += [f"{FAMILIES[0]}, minus full", "all, minus full"]
    lines = []
    for name, row in rows.items():
        costs = (row["cost"][share] for share in ("kept", "by_layer", "operations"))
        right = (row["right"][group]["mean"] for group in (*FAMILIES, "all"))
        apart = (difference(row["minus_full"][group]) for group in (FAMILIES[0], "all"))
        lines.append([label(name), *map(share, (*costs, *right)), *apart])
    return table(heading, lines)


def kinds_table(rows: Rows, keep: float) -> str:
    """Table of accuracy by kind of question at a kept share, and of the references."""
    kinds = list(next(iter(rows.values()))["kinds"])
    lines = [
        [label(name), *(f"{row['kinds'][kind]:.0%}" for kind in kinds)]
        for name, row in rows.items()
        if name.endswith(f"| {keep:.0%}") or " | " not in name
    ]
    return table(["method", *kinds], lines)


def lengths_table(rows: Rows) -> str:
    """Table of accuracy by length of the clip, with 95 % intervals."""
    lengths = list(rows[FULL]["lengths"])
    lines = [
        [label(name), *(with_interval(row["lengths"][length]) for length in lengths)]
        for name, row in rows.items()
    ]
    return table(["method", *lengths], lines)


def compared(
    summary: Mapping[str, Summary],
    methods: Iterable[str],
    cell: Callable[[Rows, str, float], str],
    shares: Sequence[float] = SHORT,
    label: Callable[[str], str] = str,
) -> str:
    """Table with a line per measured method and a column per difficulty and kept share.

    Args:
        cell: text of a method at a share, from the rows of a difficulty.
        label: displayed name of a method.
    """
    columns = [(of["rows"], keep) for of in summary.values() for keep in shares]
    lines = []
    for method in methods:
        cells = [cell(rows, method, keep) for rows, keep in columns]
        if any(text != MISSING for text in cells):
            lines.append([label(method), *cells])
    return table(["method", *(f"{name}, {keep:.0%}" for name in summary for keep in shares)], lines)


def short_table(summary: Mapping[str, Summary], shares: Sequence[float] = SHORT) -> str:
    """Table of right answers of every method at a few kept shares."""

    def right(rows: Rows, method: str, keep: float) -> str:
        return share(right_answers(rows, method if method == FULL else row_name(method, keep)))

    return compared(summary, [FULL, *METHODS, *ORACLE], right, shares)


def right_answers(rows: Rows, name: str) -> float | None:
    """Share of right answers of a row, or None if it was not measured."""
    return rows[name]["right"]["all"]["mean"] if name in rows else None


def label(name: str) -> str:
    """Displayed name of a row, without the bar, which would end the cell."""
    return name.replace(" | ", ", ")


STYLES = {  # colour and marker by method
    "omnizip": ("#d1663d", "o"),
    "omnizip, published": ("#e3a06b", "s"),
    "omnizip, paper-exact": ("#8a4a2f", "v"),
    "random": ("#777777", "x"),
    "dycoke": ("#6aa84f", "^"),
    "visionzip": ("#9467bd", "P"),
    "evs": ("#17becf", "<"),
    "vidcom2": ("#bcbd22", ">"),
    "seats": ("#1f3b73", "*"),
    "fastv": ("#c2185b", "h"),
    "surprise": ("#2a7f9e", "D"),
    "oracle": ("#000000", "1"),
}


def plot_curves(summary: Mapping[str, Summary]) -> Figure:
    """Plot accuracy against the kept share, a panel per difficulty; bands are 95 % intervals."""
    lines = -(-len(summary) // 2)
    figure = Figure(figsize=(11, 4.2 * lines + 0.8), layout="constrained")
    axes = figure.subplots(lines, 2, squeeze=False).ravel()
    named = {}
    for ax, (difficulty, of) in zip(axes, summary.items(), strict=False):
        rows = of["rows"]
        full = rows[FULL]["right"]["all"]["mean"]
        ax.axhline(full, color="black", linewidth=0.8, linestyle=":")
        for method, (colour, marker) in STYLES.items():
            points = [p for name, p in rows.items() if method_of(name) == method]
            points = sorted((p["cost"]["by_layer"], *p["right"]["all"].values()) for p in points)
            if points:
                x, mean, low, high = np.array(points).T
                (named[method],) = ax.plot(x, mean, color=colour, marker=marker, linewidth=1.3)
                ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        ax.set(title=f"{difficulty} clips", xlabel="share of media tokens, mean over layers")
        ax.set_ylabel("right answers (dotted: all tokens)")
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.grid(alpha=0.25)
    for ax in axes[len(summary) :]:
        ax.set_visible(False)
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=6, fontsize=9
    )
    return figure


def whole_tables(summary: Mapping[str, Summary]) -> str:
    """Page with all rows of all difficulties, in Markdown."""
    parts = [
        "# Accuracy: complete tables",
        "Test clips; [accuracy.md](accuracy.md) explains the columns.",
    ]
    for difficulty, of in summary.items():
        name, rows = difficulty.capitalize(), of["rows"]
        parts += [
            f"## {name} clips",
            f"{of['clips']} clips, {of['questions']} questions about each. Right answers:",
            short_table({difficulty: of}, QUESTION_SETS[difficulty].shares),
            "In full, with costs and paired differences:",
            accuracy_table(rows),
        ]
        if "lengths" in rows[FULL]:
            parts += [f"### {name} clips by length", lengths_table(rows)]
        for keep in QUESTION_SETS[difficulty].shares:
            parts += [f"### {name} clips by kind of question, {keep:.0%}", kinds_table(rows, keep)]
    return "\n\n".join(parts) + "\n"


def write_tables(summary: Mapping[str, Summary], folder: Path) -> None:
    """Write the summary, complete tables, curves, and the tables of ``accuracy.md`` if it exists.

    Raises:
        ValueError: the page names an unknown table; nothing is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "accuracy.md"
    filled = fill(page.read_text(), tables(summary)) if page.exists() else None
    (folder / "accuracy.json").write_text(json.dumps(summary) + "\n")
    (folder / "accuracy_tables.md").write_text(whole_tables(summary))
    plot_curves(summary).savefig(folder / "accuracy.png", dpi=90)
    if filled is not None:
        page.write_text(filled)


def tables(summary: Mapping[str, Summary]) -> dict[str, str]:
    """Tables of ``accuracy.md`` by the name in its comments."""
    return {
        "clips": clips_table(summary),
        "right": short_table(summary),
        "retained": retained_table(summary),
        "rivals": rivals_table(summary),
        "variants of surprise": variants_table(summary, "surprise"),
        "variants of omnizip": variants_table(summary, "omnizip"),
    }


def fill(page: str, tables: Mapping[str, str]) -> str:
    """Replace each table between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page names an unknown table.
    """

    def put(match: re.Match[str]) -> str:
        if match[1] not in tables:
            raise ValueError(f"unknown table {match[1]!r}; tables are {', '.join(tables)}")
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", put, page, flags=re.DOTALL)


def clips_table(summary: Mapping[str, Summary]) -> str:
    """Table of the numbers of clips and questions."""
    lines = [
        [name, f"{of['clips']:,}", f"{of['clips'] * of['questions']:,}"]
        for name, of in summary.items()
    ]
    return table(["clips", "number", "questions"], lines)


def retained_table(summary: Mapping[str, Summary]) -> str:
    """Table of right answers relative to all tokens."""

    def retained(rows: Rows, name: str) -> float | None:
        found = right_answers(rows, name)
        return found and found / rows[FULL]["right"]["all"]["mean"]

    return compared(
        summary, RETAINED, lambda rows, name, keep: share(retained(rows, row_name(name, keep)))
    )


def rivals_table(summary: Mapping[str, Summary]) -> str:
    """Table of paired differences, Surprise minus its best competitors."""

    def ahead(rows: Rows, rival: str, keep: float) -> str:
        minus = _minus(rows, rival, LEADING, keep)
        if minus is None:
            return MISSING
        mean, low, high = (-minus[key] for key in ("mean", "high", "low"))
        return difference({"mean": mean, "low": low, "high": high})

    return compared(summary, RIVALS, ahead)


def variants_table(summary: Mapping[str, Summary], whole: str) -> str:
    """Table of variants minus the whole method; bold if the interval excludes zero."""
    variants = dict.fromkeys(
        method_of(name)
        for of in summary.values()
        for name in of["rows"]
        if name.startswith(f"{whole}, ")
    )

    def changed(rows: Rows, variant: str, keep: float) -> str:
        minus = _minus(rows, variant, whole, keep)
        if minus is None:
            return MISSING
        text = f"{100 * minus['mean']:+.1f}"
        return f"**{text}**" if minus["low"] > 0 or minus["high"] < 0 else text

    return compared(summary, variants, changed, label=lambda name: name.removeprefix(f"{whole}, "))


def _minus(rows: Rows, name: str, other: str, keep: float) -> dict[str, float] | None:
    row: dict[str, Any] = rows.get(row_name(name, keep), {})
    return row.get("minus", {}).get(row_name(other, keep))
