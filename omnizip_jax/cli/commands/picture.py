"""``omnizip picture``: what methods keep, and where the decoder attends."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.cli.arguments import check_question, make_folder, utf8
from omnizip_jax.cli.beside import add_methods, load_beside
from omnizip_jax.cli.shared import Help, add_clip


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    picture = commands.add_parser(
        "picture",
        help="draw what methods keep of a clip, and where the decoder attends",
        description="Draws the frames of a clip with dropped tokens dimmed, its sound and the "
        "rates of every window (the paper's Fig. 8 and 5), and what the last token of a question "
        "attends to in every layer (Fig. 2); for several methods one below the other.",
        formatter_class=Help,
    )
    add_clip(picture, question=False)
    add_methods(picture, "omnizip")
    picture.add_argument(
        "--question",
        type=utf8,
        default="What happens in the video?",
        metavar="TEXT",
        help="whose last token attends, and what methods inside the decoder go by",
    )
    picture.add_argument(
        "--out",
        type=Path,
        default=Path("omnizip-picture"),
        metavar="FOLDER",
        help="folder to write the pictures to",
    )
    picture.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_question("--question", arguments.question)
    make_folder("--out", arguments.out)

    from omnizip_jax.cli.compare import picture

    picture(*load_beside(arguments), arguments.question, arguments.out, arguments.seed)
    return 0
