"""What the testbed's commands have in common."""

from __future__ import annotations

import argparse

from omnizip_jax.checkpoint.load import load
from omnizip_jax.models.params import Params


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint``, loaded in float32; one that cannot be loaded ends the command."""
    parser.add_argument(
        "--checkpoint",
        type=_loaded,
        default="small",
        help="converted, or the one that comes along: small",
    )


def _loaded(checkpoint: str) -> Params:
    try:
        return load(checkpoint, dtype="float32")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
