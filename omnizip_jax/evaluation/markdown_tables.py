"""Tables in Markdown, and the format of numbers in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MISSING = "-"


def aligned_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers.

    Cells are padded to the width of their column, so that it can be read as plain text.
    """
    widths = [max(4, *map(len, column)) for column in zip(heading, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    head, *lines = (
        [cell.rjust(w) if number else cell.ljust(w) for number, (cell, w) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in (heading, *rows))
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def section(title: str, *parts: str) -> str:
    """A heading and the parts that are not empty."""
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def tera(value: float | None) -> str:
    """Operations in units of 10^12."""
    return MISSING if value is None else f"{value / 1e12:.3g}"


def size(value: float | None, space: str = "") -> str:
    """Bytes or operations with a decimal prefix: 563k, 35.2G."""
    if value is None:
        return MISSING
    steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
    unit, name = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / unit:.3g}{space}{name}"


def with_interval(figure: dict[str, Any] | None) -> str:
    """A mean in percent and its interval, if it has one."""
    return _with_interval(figure, "mean", percent)


def difference(figure: dict[str, Any] | None) -> str:
    """A mean difference in percentage points and its interval, with signs."""
    return _with_interval(figure, "mean", lambda value: f"{100 * value:+.1f}")


def seconds_with_interval(figure: dict[str, Any] | None) -> str:
    """A median in seconds and its interval."""
    return _with_interval(figure, "median", seconds)


def _with_interval(figure: dict[str, Any] | None, middle: str, form: Callable[[float], str]) -> str:
    if not figure:
        return MISSING
    if figure["low"] is None:
        return form(figure[middle])
    value, low, high = (form(figure[name]) for name in (middle, "low", "high"))
    return f"{value} ({low} to {high})"
