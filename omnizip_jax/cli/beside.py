"""What `omnizip compare` and `omnizip picture` share: a clip, and methods beside each other."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from omnizip_jax.cli.arguments import finite, seed
from omnizip_jax.cli.shared import (
    add_checkpoint,
    add_grid,
    add_max_frames,
    load_checkpoint,
    spec_from,
)

if TYPE_CHECKING:  # jax is imported once the arguments are read
    from omnizip_jax.compression import Method
    from omnizip_jax.media import Clip
    from omnizip_jax.models.params import Params


def add_methods(parser: argparse.ArgumentParser, methods: str) -> None:
    """The methods, and what all of them are given."""
    add_checkpoint(parser, "small")
    parser.add_argument(
        "--methods",
        "--method",
        default=methods,
        metavar="NAMES",
        help="with commas between; `omnizip methods` lists them",
    )
    parser.add_argument(
        "--keep",
        type=finite,
        metavar="SHARE",
        help="share of all media tokens that each method keeps; `all` keeps everything",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of those methods that have it; may be repeated",
    )
    add_max_frames(parser)
    add_grid(parser)
    parser.add_argument("--seed", type=seed, default=0, help="for methods that draw")


def load_beside(arguments: argparse.Namespace) -> tuple[Params, dict[str, Method], Clip]:
    """The model, the methods and the clip."""
    from omnizip_jax.cli.compare import check_methods, load_once
    from omnizip_jax.cli.methods import parse_methods

    keep = [] if arguments.keep is None else [f"keep={arguments.keep}"]
    methods = parse_methods(arguments.methods, [*arguments.set, *keep])
    params = load_checkpoint(arguments)
    check_methods(params, methods)
    spec = spec_from(arguments, params.config.spec)
    clip = load_once(params, arguments.clip, spec, arguments.max_frames, sys.stderr.isatty())
    return params, methods, clip
