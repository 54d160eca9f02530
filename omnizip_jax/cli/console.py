"""Console output of all commands."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column


class OutputConsole(Console):
    """A console that raises when the reader of a pipe has exited, as ``print`` does."""

    def on_broken_pipe(self) -> None:
        raise


def right_aligned(*headings: str) -> list[Column]:
    """Columns of numbers for a table."""
    return [Column(heading, justify="right") for heading in headings]
