"""Arguments that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from omnizip_jax.cli import programs
from omnizip_jax.cli.arguments import positive, utf8

if TYPE_CHECKING:  # jax is imported once the arguments are read
    from omnizip_jax.compression import Method
    from omnizip_jax.config import WindowSpec
    from omnizip_jax.models.params import Params


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, where there is one to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = isinstance(action.default, bool) or action.default in (None, [])
        return action.help if nothing else super()._get_help_string(action)


def add_clip(parser: argparse.ArgumentParser, question: bool = True) -> None:
    """A clip, and a question about it."""
    parser.add_argument("clip", metavar="CLIP", help="video file or URL")
    if question:
        parser.add_argument(
            "question", type=utf8, metavar="QUESTION", help="what you want to know about it"
        )


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The weights, and their dtype; without a default they must be named."""
    parser.add_argument(
        "--checkpoint",
        required=default is None,
        default=default,
        metavar="DIR",
        help='folder that `omnizip convert` wrote, or "small": the small model that comes along',
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="run in another dtype")


def add_modalities(parser: argparse.ArgumentParser) -> None:
    """What may be left out of a clip."""
    parser.add_argument("--no-audio", action="store_true", help="leave the sound out")
    parser.add_argument("--no-video", action="store_true", help="leave the picture out")


def add_system(parser: argparse.ArgumentParser) -> None:
    """The system prompt."""
    parser.add_argument(
        "--system", type=utf8, metavar="TEXT", help="system prompt, if not the released one"
    )


def add_reply_length(parser: argparse.ArgumentParser, default: int) -> None:
    """Where an answer ends at the latest."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=default, metavar="N", help="longest answer"
    )


def add_max_frames(parser: argparse.ArgumentParser) -> None:
    """The cap on frames."""
    parser.add_argument(
        "--max-frames", type=positive, metavar="N", help="sample at most N frames of a long clip"
    )


def add_grid(parser: argparse._ActionsContainer) -> None:
    """The size of a grid."""
    parser.add_argument(
        "--grid-slots",
        type=positive,
        metavar="N",
        help="video tokens for each second, at most (default: the checkpoint's)",
    )


def add_compression(parser: argparse.ArgumentParser) -> None:
    """What the commands that compress share: the grid, and the method with its settings."""
    add_grid(parser)
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--method", default="omnizip", metavar="NAME", help="`omnizip methods` lists them"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, rho_audio=0.4 for example; may be repeated",
    )


def add_memory(parser: argparse.ArgumentParser) -> None:
    """What a stream remembers."""
    parser.add_argument(
        "--capacity", type=positive, default=8192, metavar="N", help="tokens that are remembered"
    )
    parser.add_argument(
        "--memory",
        choices=["recent", "fading"],
        default="fading",
        help="what a full cache forgets: of every window the more the older it is, or the oldest",
    )


def method_from(arguments: argparse.Namespace) -> Method:
    """The method that the command line asks for."""
    from omnizip_jax.cli.methods import parse_method

    return parse_method(arguments.method, arguments.set)


def spec_from(arguments: argparse.Namespace, spec: WindowSpec) -> WindowSpec:
    """The checkpoint's shape of a window, with the grid that the command line asks for."""
    if arguments.grid_slots is None:
        return spec
    return dataclasses.replace(spec, grid_slots=arguments.grid_slots)


def load_checkpoint(arguments: argparse.Namespace) -> Params:
    """The weights that the command line names; compiled programs are kept from here on."""
    import omnizip_jax

    programs.enable_compilation_cache()
    if sys.stderr.isatty():
        print(f"[loading {arguments.checkpoint}]", file=sys.stderr)
    return omnizip_jax.load(arguments.checkpoint, dtype=arguments.dtype)
