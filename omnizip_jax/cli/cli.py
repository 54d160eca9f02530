"""The ``omnizip`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from omnizip_jax.cli.commands import (
    caption,
    compare,
    demo,
    evaluate,
    generate,
    methods,
    picture,
    questions,
    report,
    serve,
    stream,
)

STOPPED = 130  # the exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input ends with a message and exit code 1, Ctrl-C with 130.

    Raises:
        SystemExit: ``--help``, and arguments that cannot be parsed (exit code 2).
        OSError: an output does not take what is written; ``app.process`` explains it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch; nothing here does
    try:
        if argv[:1] == ["convert"]:  # the script convert/hf_to_flax.py has the same arguments
            from omnizip_jax.checkpoint.convert import main as convert

            code = convert(argv[1:], prog="omnizip convert")
        else:
            arguments = build_parser().parse_args(argv)
            code = arguments.run(arguments)
    except KeyboardInterrupt:
        code = STOPPED
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        print(f"omnizip: {error}", file=sys.stderr)
        code = 1
    if code == STOPPED:
        print("omnizip: stopped", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The command line, as ``--help`` shows it."""
    parser = argparse.ArgumentParser(
        prog="omnizip",
        description="Ask Qwen2.5-Omni about videos with sound, reading 35-45 % of the tokens.",
        epilog="Start with `omnizip demo`: it needs no weights to download and no video.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add(commands)
    commands.add_parser(
        "convert", help="turn released Qwen2.5-Omni weights into a Flax checkpoint, once"
    )
    for command in (
        methods,
        generate,
        compare,
        picture,
        questions,
        evaluate,
        report,
        caption,
        serve,
        stream,
    ):
        command.add(commands)
    return parser
