"""``omnizip methods``: what chooses among tokens, and its settings."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    methods = commands.add_parser("methods", help="list the methods that choose among tokens")
    methods.add_argument(
        "name", nargs="?", metavar="NAME", help="one of them, with its settings and their defaults"
    )
    methods.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry it out; returns the exit code."""
    from omnizip_jax.cli.methods import print_method, print_methods
    from omnizip_jax.cli.terminal import Terminal

    if arguments.name is None:
        print_methods(Terminal())
    else:
        print_method(arguments.name, Terminal())
    return 0
