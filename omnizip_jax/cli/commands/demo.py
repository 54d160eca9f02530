"""``omnizip demo``: the small model on a clip made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path

from omnizip_jax.cli import programs
from omnizip_jax.cli.arguments import make_folder, seed


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    demo = commands.add_parser(
        "demo",
        help="see a small trained model answer questions about a clip made on the spot",
        description="Makes a clip with shapes and sounds, asks the small trained model that comes "
        "along what was seen and heard, with all, 45 %% and 35 %% of the tokens, prints true "
        "answers beside its own, and draws what was kept.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("omnizip-demo"), help="folder to write to (%(default)s)"
    )
    demo.add_argument("--seed", type=seed, help="a number makes another clip and other questions")
    demo.add_argument(
        "--stream",
        action="store_true",
        help="stream a minute window by window instead, through a cache that is too small for it, "
        "and ask about its first ten seconds until its end",
    )
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    make_folder("--out", arguments.out)

    if arguments.stream:
        from omnizip_jax.cli.demo_stream import run_stream as run
    else:
        from omnizip_jax.cli.demo import run

    programs.enable_compilation_cache()
    run(arguments.out, arguments.seed)
    return 0
