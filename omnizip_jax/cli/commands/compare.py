"""``omnizip compare``: one question under several methods."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.cli.arguments import check_question, make_folder
from omnizip_jax.cli.beside import add_methods, load_beside
from omnizip_jax.cli.shared import Help, add_clip, add_reply_length


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    compare = commands.add_parser(
        "compare",
        help="ask a question under several methods: answers, tokens, operations, times, picture",
        description="Answers one question about one clip under each method, twice, so that times "
        "are those of compiled programs; prints answers, tokens and cost, and draws what each "
        "method kept.",
        formatter_class=Help,
    )
    add_clip(compare)
    add_methods(compare, "all,omnizip,random,fastv")
    add_reply_length(compare, 128)
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("omnizip-compare"),
        metavar="FOLDER",
        help="folder to write the picture to",
    )
    compare.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_question("QUESTION", arguments.question)
    make_folder("--out", arguments.out)

    from omnizip_jax.cli.compare import compare

    compare(
        *load_beside(arguments),
        arguments.question,
        arguments.out,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    return 0
