"""``omnizip evaluate`` and ``omnizip caption``: questions, a run, what it came to."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence

from omnizip_jax.checkpoint.load import load_outline
from omnizip_jax.cli.methods import parse_method
from omnizip_jax.cli.shared import load_checkpoint, spec_from
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.cluster import evaluate_on_cluster
from omnizip_jax.evaluation.evaluator import Engine, Settings
from omnizip_jax.evaluation.protocols import OPEN, PROTOCOLS
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import read_rows
from omnizip_jax.evaluation.run_report import write_report
from omnizip_jax.evaluation.runner import evaluate
from omnizip_jax.evaluation.watching import Watching
from omnizip_jax.models.params import Params


def named_method(arguments: argparse.Namespace) -> tuple[str, Method]:
    """The one method that the command line asks for, and what results call it.

    Raises:
        ValueError: an unknown method or setting.
    """
    name = ":".join([arguments.method, *[",".join(arguments.set)] * bool(arguments.set)])
    return name, parse_method(arguments.method, arguments.set)


def methods_from(arguments: argparse.Namespace) -> dict[str, Method]:
    """The methods to measure, by what the command line calls them.

    Raises:
        ValueError: unknown methods or settings, or one method twice.
    """
    if not arguments.compare:
        return dict([named_method(arguments)])
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


def caption_settings(arguments: argparse.Namespace) -> Settings:
    """What the command line asks for of captions: one method, the prompt as it is.

    Raises:
        ValueError: an unknown method or setting.
    """
    name, method = named_method(arguments)
    return Settings(
        methods={name: method},
        protocol=OPEN,
        max_frames=arguments.max_frames,
        max_new_tokens=arguments.max_new_tokens,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
    )


def ask_all(
    questions: Sequence[Question],
    settings: Settings,
    arguments: argparse.Namespace,
    one_by_one: bool = False,
) -> None:
    """Ask on this device, or on a cluster.

    Raises:
        ValueError: no checkpoint, results of another run, an output that cannot be written, a
            cluster that is not there.
    """
    common = {
        "checkpoint": arguments.checkpoint,
        "one_by_one": one_by_one,
        "progress": sys.stderr.isatty(),
    }
    if arguments.cluster is None:
        engine = _engine(load_checkpoint(arguments), settings, arguments)
        evaluate(engine, questions, arguments.out, **common)
        return
    if sys.stderr.isatty():
        print("[starting the workers]", file=sys.stderr)
    outline = load_outline(arguments.checkpoint, dtype=arguments.dtype)
    evaluate_on_cluster(
        _engine(outline, settings, arguments),
        functools.partial(load_checkpoint, arguments),
        questions,
        arguments.out,
        address=arguments.cluster,
        workers=arguments.workers,
        **common,
    )


def print_run(arguments: argparse.Namespace) -> None:
    """Write the report of a run, and print it."""
    print(write_report(arguments.out).read_text(encoding="utf-8"))


def print_captions(arguments: argparse.Namespace) -> None:
    """Say how many captions there are, and what became of the others."""
    rows = read_rows(arguments.out)
    failed = [row for row in rows if row["error"] is not None]
    print(f"{len(rows) - len(failed)} captions: {arguments.out}")
    if failed:
        first = failed[0]
        print(
            f"{len(failed)} videos have none, {first['video']} for example: {first['error']}",
            file=sys.stderr,
        )


def _engine(params: Params, settings: Settings, arguments: argparse.Namespace) -> Engine:
    spec = spec_from(arguments, params.config.spec)
    return Engine(params, dataclasses.replace(settings, spec=spec))
