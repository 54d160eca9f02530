"""``omnizip report``: runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    report = commands.add_parser(
        "report",
        help="put runs of `omnizip evaluate` side by side, as the paper's tables",
        description="Tables 1, 2, 3 and 6 and Figures 4, 6 and 7 of the paper, as far as the runs "
        "give them, with the paper's own figures beside them, marked as theirs.",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RESULTS.jsonl")
    report.add_argument("--out", type=Path, metavar="FILE.md", help="write it here instead")
    report.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    from omnizip_jax.cli.reports import print_report

    print_report(arguments.runs, arguments.out)
    return 0
