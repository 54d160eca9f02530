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


def print_plain(console: Console, text: str) -> None:
    """Print text without markup, highlighting and wrapping, so that commands can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
