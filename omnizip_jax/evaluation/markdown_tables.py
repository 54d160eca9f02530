"""Numbers as tables in Markdown show them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

NOTHING = "-"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def lined_up(text: str) -> str:
    """Markdown whose tables can be read as they are: cells of a column are equally wide."""
    parts = itertools.groupby(text.split("\n"), lambda line: line.startswith("| "))
    return "\n".join(
        _columns(lines) if is_table else "\n".join(lines)
        for is_table, lines in ((is_table, list(lines)) for is_table, lines in parts)
    )


def _columns(lines: Sequence[str]) -> str:
    columns = zip(*(line.strip("| ").split(" | ") for line in lines), strict=True)
    padded = []
    for number, column in enumerate(columns):
        width = max(map(len, column))
        column = [cell.rjust(width) if number else cell.ljust(width) for cell in column]
        column[1] = "-" * (width - 1) + (":" if number else "-")
        padded.append(column)
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*padded, strict=True))


def section(title: str, *parts: str) -> str:
    """A heading with what belongs to it; nothing where there is nothing."""
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def with_interval(figure: dict[str, Any] | None) -> str:
    """A mean of rights and wrongs in percent, and its interval."""
    if not figure:
        return NOTHING
    low, high = percent(figure["low"]), percent(figure["high"])
    return f"{percent(figure['mean'])} ({low} to {high})"


def difference(figure: dict[str, Any] | None) -> str:
    """The same of a difference, with its sign."""
    if not figure:
        return NOTHING
    values = (f"{100 * figure[key]:+.1f}" for key in ("mean", "low", "high"))
    return "{} ({} to {})".format(*values)


def seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def seconds_with_interval(figure: dict[str, float] | None) -> str:
    if not figure:
        return NOTHING
    low, high = seconds(figure["low"]), seconds(figure["high"])
    return f"{seconds(figure['median'])} ({low} to {high})"


def tera(value: float | None) -> str:
    """Operations in units of 10^12."""
    return NOTHING if value is None else f"{value / 1e12:.3g}"


def size(value: float | None) -> str:
    """Bytes: 563k, 35.2G."""
    if value is None:
        return NOTHING
    steps = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
    unit, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / unit:.3g}{name}"
