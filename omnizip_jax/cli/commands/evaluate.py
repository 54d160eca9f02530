"""``omnizip evaluate``: a file of questions about videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.cli.arguments import check_modalities, positive
from omnizip_jax.cli.cluster import add_cluster, check_cluster
from omnizip_jax.cli.shared import (
    Help,
    add_checkpoint,
    add_compression,
    add_max_frames,
    add_memory,
    add_modalities,
)


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    evaluate = commands.add_parser(
        "evaluate",
        help="ask a file of questions about videos, and report accuracy and cost",
        description="Asks every question of a file, one JSON object a line: id, video, question, "
        "and if you like options, answer, start, end, and columns of your own. Rows are appended "
        "as they come; the same command again goes on where it was stopped.",
        formatter_class=Help,
    )
    evaluate.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl")
    add_checkpoint(evaluate)
    evaluate.add_argument("--out", type=Path, required=True, metavar="RESULTS.jsonl")
    add_compression(evaluate)
    evaluate.add_argument(
        "--compare",
        nargs="+",
        metavar="METHOD",
        help="several methods instead, the first one the reference: all omnizip:keep=0.35 "
        "random:keep=0.35,split=true",
    )
    evaluate.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="of methods that draw"
    )
    evaluate.add_argument(
        "--protocol", default="authors", metavar="NAME", help="words and scoring: or lmms-eval"
    )
    add_modalities(evaluate)
    add_max_frames(evaluate)
    evaluate.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest reply (default: protocol's)"
    )
    evaluate.add_argument(
        "--stream",
        action="store_true",
        help="read each clip window by window, as a stream that --capacity and --memory bound",
    )
    add_memory(evaluate)
    evaluate.add_argument(
        "--one-by-one",
        action="store_true",
        help="read no clip ahead: slower, for times that nothing disturbs",
    )
    add_cluster(evaluate)
    evaluate.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_modalities(arguments)
    check_cluster(arguments)

    from omnizip_jax.cli.evaluate import ask_all, print_run, settings_from
    from omnizip_jax.evaluation.question_file import read_questions

    settings = settings_from(arguments)
    questions = read_questions(arguments.questions)
    ask_all(questions, settings, arguments, arguments.one_by_one)
    print_run(arguments)
    return 0
