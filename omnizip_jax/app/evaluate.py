"""``omnizip evaluate``: a file of questions, a run, its report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from omnizip_jax.app.methods import parse_method
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.engine import Engine, Settings
from omnizip_jax.evaluation.protocol import PROTOCOLS
from omnizip_jax.evaluation.questions import Question
from omnizip_jax.evaluation.report import write_report
from omnizip_jax.evaluation.run import evaluate
from omnizip_jax.evaluation.watching import Watching
from omnizip_jax.models.params import Params


def methods_from(arguments: argparse.Namespace) -> dict[str, Method]:
    """The methods to measure, by what the command line calls them.

    Raises:
        ValueError: unknown methods or settings, or one method twice.
    """
    if not arguments.compare:
        name = ":".join([arguments.method, *[",".join(arguments.set)] * bool(arguments.set)])
        return {name: parse_method(arguments.method, arguments.set)}
    if arguments.set:
        raise ValueError("--set goes with --method; in --compare write omnizip:keep=0.35")
    methods = {}
    for text in arguments.compare:
        name, _, settings = text.partition(":")
        if text in methods:
            raise ValueError(f"--compare: {text} is given twice")
        methods[text] = parse_method(name, settings.split(",") if settings else [])
    return methods


def settings_from(arguments: argparse.Namespace) -> Settings:
    """What the command line asks for, with the checkpoint's own shape of a window.

    Raises:
        ValueError: an unknown method, setting or protocol.
    """
    if arguments.protocol not in PROTOCOLS:
        raise ValueError(
            f"--protocol {arguments.protocol}: unknown; take one of {', '.join(PROTOCOLS)}"
        )
    return Settings(
        methods=methods_from(arguments),
        protocol=PROTOCOLS[arguments.protocol],
        seeds=arguments.seeds,
        max_frames=arguments.max_frames,
        max_new_tokens=arguments.max_new_tokens,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        watching=Watching(arguments.memory, arguments.capacity) if arguments.stream else None,
    )


def ask_all(
    params: Params,
    questions: Sequence[Question],
    settings: Settings,
    arguments: argparse.Namespace,
) -> None:
    """Ask, and print the report.

    Raises:
        ValueError: results of another run, or an output that cannot be written.
    """
    evaluate(
        Engine(params, settings),
        questions,
        arguments.out,
        checkpoint=arguments.checkpoint,
        one_by_one=arguments.one_by_one,
        progress=sys.stderr.isatty(),
    )
    print(write_report(arguments.out).read_text(encoding="utf-8"))
