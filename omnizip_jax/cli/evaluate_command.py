"""``omnizip questions``, ``evaluate``, ``report`` and ``caption``."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnizip_jax.checkpoint.load import load_outline
from omnizip_jax.cli.model_setup import load_checkpoint, parse_method, window_spec
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.clip_evaluator import EvaluationSettings, Evaluator, StreamSettings
from omnizip_jax.evaluation.dataset_readers import BENCHMARKS, read_benchmark
from omnizip_jax.evaluation.dataset_runner import Cluster, evaluate
from omnizip_jax.evaluation.paper_comparison import compare_with_paper
from omnizip_jax.evaluation.protocols import OPEN_ENDED, PROTOCOLS
from omnizip_jax.evaluation.question_file import (
    Question,
    caption_questions,
    read_questions,
    write_questions,
)
from omnizip_jax.evaluation.result_files import read_rows, write_text
from omnizip_jax.evaluation.run_report import summarise, write_report

TIMES = [".times"]  # suffix of a file beside the rows that also matches `runs/*.jsonl`


def run_questions(arguments: argparse.Namespace) -> None:
    """Write a benchmark's questions, and print how many were found."""
    benchmark, out = arguments.benchmark, arguments.out
    questions = read_benchmark(benchmark, arguments.annotations, arguments.videos)
    write_questions(questions, out)
    clips = {question["video"] for question in questions}
    missing = sum(not Path(clip).is_file() for clip in clips)
    print(f"{len(questions)} questions about {len(clips)} videos: {out}")
    if missing:
        print(f"{missing} of the videos are not there; --videos names their folder")
    print(f"the paper uses at most {BENCHMARKS[benchmark].frames} frames of each: --max-frames")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Ask every question under every method, then print the report."""
    if arguments.protocol not in PROTOCOLS:
        raise ValueError(
            f"--protocol {arguments.protocol}: unknown; take one of {', '.join(PROTOCOLS)}"
        )
    stream = StreamSettings(arguments.memory, arguments.capacity) if arguments.windowed else None
    settings = {"seeds": arguments.seeds, "stream": stream}
    protocol = PROTOCOLS[arguments.protocol]
    _run(arguments, read_questions(arguments.questions), protocol, arguments.one_by_one, **settings)
    print(write_report(arguments.out).read_text(encoding="utf-8"))


def run_report(arguments: argparse.Namespace) -> None:
    """Tabulate runs side by side, printed or written."""
    runs = dict.fromkeys(x for x in arguments.results if x.suffixes[-2:-1] != TIMES)
    text = compare_with_paper([summarise(run) for run in runs])
    if arguments.report is None:
        print(text)
    else:
        write_text(arguments.report, text + "\n")
        print(arguments.report, file=sys.stderr)


def run_caption(arguments: argparse.Namespace) -> None:
    """Send one prompt about every video, then print how many captions there are."""
    _run(arguments, caption_questions(arguments.videos, arguments.prompt), OPEN_ENDED)
    rows = read_rows(arguments.out)
    failed = [row for row in rows if row["error"] is not None]
    print(f"{len(rows) - len(failed)} captions: {arguments.out}")
    if failed:
        first = failed[0]
        print(
            f"{len(failed)} videos have none, {first['video']} for example: {first['error']}",
            file=sys.stderr,
        )


def _methods(arguments: argparse.Namespace) -> dict[str, Method]:
    """The methods to evaluate, by their text on the command line."""
    if not vars(arguments).get("compare"):
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


def _run(
    arguments: argparse.Namespace,
    questions: Sequence[Question],
    protocol: Any,
    one_by_one: bool = False,
    **settings: Any,
) -> None:
    """Ask on this device, or on a cluster.

    Raises:
        ValueError: no checkpoint, results of another run, an output that cannot be written, or an
            unreachable cluster.
    """
    # Checked before the checkpoint is loaded, which has the shape of the windows.
    evaluation = EvaluationSettings(
        methods=_methods(arguments),
        protocol=protocol,
        max_frames=arguments.max_frames,
        max_new_tokens=arguments.max_new_tokens,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        **settings,
    )
    cluster = None
    load = functools.partial(
        load_checkpoint, arguments.checkpoint, arguments.dtype, arguments.devices
    )
    if arguments.cluster is None:
        params = load()
    else:
        if sys.stderr.isatty():
            print("[starting the workers]", file=sys.stderr)
        cluster = Cluster(load, arguments.cluster, arguments.workers)
        params = load_outline(arguments.checkpoint, dtype=arguments.dtype)
    spec = window_spec(arguments, params.config.spec)
    evaluate(
        Evaluator(params, dataclasses.replace(evaluation, spec=spec)),
        questions,
        arguments.out,
        cluster=cluster,
        checkpoint=arguments.checkpoint,
        one_by_one=one_by_one,
        progress=sys.stderr.isatty(),
    )
