"""What commands share that run on a cluster."""

from __future__ import annotations

import argparse
import importlib.util

from omnizip_jax.cli.arguments import positive


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Where the engines run."""
    group = parser.add_argument_group("many devices, many machines")
    group.add_argument(
        "--cluster",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="an engine on every device of this Ray cluster; without an address of this machine",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="engines (default: one for each GPU, or for each machine if there are none)",
    )


def check_cluster(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` if Ray is asked for and missing, or if workers have no cluster."""
    if arguments.workers is not None and arguments.cluster is None:
        raise ValueError("--workers goes with --cluster")
    if arguments.cluster is not None and importlib.util.find_spec("ray") is None:
        raise ValueError("--cluster needs Ray: pip install 'omnizip_jax[cluster]' brings it")
