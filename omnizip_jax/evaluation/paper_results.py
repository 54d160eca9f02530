"""The paper's published results, from ``paper_results.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

Rows = dict[str, tuple[tuple[str, ...], ...]]  # the rows of a table by model


def _rows(text: str) -> tuple[tuple[str, ...], ...]:
    lines = [line.partition(";") for line in text.splitlines()]
    return tuple((name, *cells.split()) for name, _, cells in lines)


_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SIZES = {int(width): model for width, model in _DATA["sizes"].items()}
AVUT, WORLDSENSE = _DATA["AVUT"], _DATA["WORLDSENSE"]
TABLES: dict[int, Rows] = {
    int(number): {model: _rows(text) for model, text in models.items()}
    for number, models in _DATA["tables"].items()
}
FIGURES = {int(number): text for number, text in _DATA["figures"].items()}
