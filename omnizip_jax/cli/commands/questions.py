"""``omnizip questions``: a benchmark as it lies on disk, as questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.evaluation.dataset_readers import BENCHMARKS


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    questions = commands.add_parser(
        "questions",
        help="turn a benchmark as it lies on disk into a file of questions",
        description="Reads the annotations of a benchmark and writes what `omnizip evaluate` asks: "
        "one JSON object a line.",
    )
    questions.add_argument(
        "benchmark", choices=list(BENCHMARKS), metavar="BENCHMARK", help=", ".join(BENCHMARKS)
    )
    questions.add_argument(
        "annotations", type=Path, metavar="FILE", help="its JSON file, or the folder that has it"
    )
    questions.add_argument(
        "--videos", type=Path, metavar="DIR", help="folder with its videos (default: of FILE)"
    )
    questions.add_argument("--out", type=Path, required=True, metavar="QUESTIONS.jsonl")
    questions.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    from omnizip_jax.cli.reports import convert_benchmark

    convert_benchmark(arguments.benchmark, arguments.annotations, arguments.videos, arguments.out)
    return 0
