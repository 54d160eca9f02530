"""What a measurement leaves in the documentation: summary, whole tables, curves, tables in a page.

Those of ``accuracy.md`` are written anew where they stand, between two comments; what stands around
them is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.accuracy_tables import (
    LEADING,
    Rows,
    Summary,
    compared,
    plot_curves,
    right_answers,
    short_table,
    whole_tables,
)
from experiments.measured_methods import FULL, method_of, row_name
from omnizip_jax.evaluation.markdown_tables import MISSING, difference, share, table

# Methods in the table of what is left of all tokens' answers, and those that Surprise is held
# against: the best of each cost.
LEFT = (
    LEADING,
    "surprise, in a stream",
    "surprise, then the question",
    "omnizip",
    "vidcom2",
    "visionzip",
    "random",
    "oracle",
    "surprise, the best of 16",
)
RIVALS = ("vidcom2", "omnizip", "omnizip, published", "seats")


def write_tables(summary: Mapping[str, Summary], folder: Path) -> None:
    """The summary, its tables and its curves; and a page, if there is one in the folder.

    Raises:
        ValueError: the page has a place for a table that was not made; nothing is written then.
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
    """Every table of the page, by the name in its comments."""
    return {
        "clips": clips_table(summary),
        "right": short_table(summary),
        "left": left_table(summary),
        "rivals": rivals_table(summary),
        "parts of surprise": parts_table(summary, "surprise"),
        "parts of omnizip": parts_table(summary, "omnizip"),
    }


def fill(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page has a place for a table that was not made.
    """

    def put(match: re.Match[str]) -> str:
        if match[1] not in tables:
            made = ", ".join(tables)
            raise ValueError(f"no table is called {match[1]!r}; those that were made: {made}")
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", put, page, flags=re.DOTALL)


def clips_table(summary: Mapping[str, Summary]) -> str:
    """How many clips and questions there were."""
    lines = [
        [name, f"{of['clips']:,}", f"{of['clips'] * of['questions']:,}"]
        for name, of in summary.items()
    ]
    return table(["clips", "of them", "questions"], lines)


def left_table(summary: Mapping[str, Summary]) -> str:
    """What methods answer right, of what all tokens answer right."""

    def left(rows: Rows, name: str) -> float | None:
        found = right_answers(rows, name)
        return found and found / rows[FULL]["right"]["all"]["mean"]

    return compared(summary, LEFT, lambda rows, name, keep: share(left(rows, row_name(name, keep))))


def rivals_table(summary: Mapping[str, Summary]) -> str:
    """Surprise minus its best rivals, paired."""

    def ahead(rows: Rows, rival: str, keep: float) -> str:
        minus = _minus(rows, rival, LEADING, keep)
        if minus is None:
            return MISSING
        mean, low, high = (-minus[key] for key in ("mean", "high", "low"))
        return difference({"mean": mean, "low": low, "high": high})

    return compared(summary, RIVALS, ahead)


def parts_table(summary: Mapping[str, Summary], whole: str) -> str:
    """What changes when a part of a method does; bold where the interval leaves nothing out."""
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
