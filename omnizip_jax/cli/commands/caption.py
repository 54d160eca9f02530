"""``omnizip caption``: one prompt about many videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.cli.arguments import check_modalities, check_question, utf8
from omnizip_jax.cli.cluster import add_cluster, check_cluster
from omnizip_jax.cli.shared import (
    Help,
    add_checkpoint,
    add_compression,
    add_max_frames,
    add_modalities,
    add_reply_length,
)


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    caption = commands.add_parser(
        "caption",
        help="one prompt about a folder or list of videos",
        description="Asks the same of every video and appends a row for each as it comes: video, "
        "reply, tokens, error. The same command again goes on where it was stopped.",
        formatter_class=Help,
    )
    caption.add_argument(
        "sources",
        nargs="+",
        metavar="VIDEOS",
        help="videos, folders of videos, URLs, or text files (.txt) with a path or URL a line",
    )
    caption.add_argument(
        "--prompt", type=utf8, required=True, metavar="TEXT", help="what is asked about each"
    )
    add_checkpoint(caption)
    caption.add_argument("--out", type=Path, required=True, metavar="CAPTIONS.jsonl")
    add_compression(caption)
    add_modalities(caption)
    add_max_frames(caption)
    add_reply_length(caption, 256)
    add_cluster(caption)
    caption.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    check_modalities(arguments)
    check_question("--prompt", arguments.prompt)
    check_cluster(arguments)

    from omnizip_jax.cli.evaluate import ask_all, caption_settings, print_captions
    from omnizip_jax.evaluation.captions import caption_questions

    settings = caption_settings(arguments)
    questions = caption_questions(arguments.sources, arguments.prompt)
    ask_all(questions, settings, arguments)
    print_captions(arguments)
    return 0
