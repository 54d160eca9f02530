"""``omnizip compare`` and ``omnizip picture``: several methods side by side on one clip."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from omnizip_jax.cli.console import OutputConsole, right_aligned
from omnizip_jax.cli.model_setup import load_checkpoint, parse_methods, window_spec
from omnizip_jax.compression import AllTokens, Method
from omnizip_jax.evaluation.decoder_cost import cost, without_compression
from omnizip_jax.evaluation.markdown_tables import seconds, size
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.attention_maps import compute_attention_maps
from omnizip_jax.inference.generation import Answer
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import family
from omnizip_jax.visualize import plot_attention, plot_methods

KEPT, ATTENTION = "kept.png", "attention.png"
DPI = 110


def run_compare(arguments: argparse.Namespace) -> None:
    """Ask under each method, print the tables, draw which tokens were kept."""
    params, methods, clip = _load(arguments)
    console = OutputConsole()
    settings = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    questions = [arguments.question]
    answers = first_answers(generate_answers(params, clip, questions, methods, console, **settings))
    table = Table("method", "answer")
    for name, answer in answers.items():
        table.add_row(name, answer.text.strip() or "(nothing)")
    console.print(table)
    console.print(*cost_tables(params, methods, answers))
    _draw_kept(answers, arguments.folder, console)


def run_picture(arguments: argparse.Namespace) -> None:
    """Draw which tokens each method keeps of a clip, and where the decoder attends."""
    params, methods, clip = _load(arguments)
    console = OutputConsole()
    question, seed = arguments.question, arguments.seed
    settings = {"max_new_tokens": 1, "seed": seed}
    answers = generate_answers(params, clip, [question], methods, console, False, **settings)
    _draw_kept(first_answers(answers), arguments.folder, console)
    maps = {}
    for name, method in methods.items():
        with console.status(f"attention: {name}"):
            maps[name] = compute_attention_maps(params, clip, question, method, seed=seed)
    path = arguments.folder / ATTENTION
    plot_attention(maps).savefig(path, dpi=DPI)
    console.print(f"Where the decoder attends: [bold]{path}[/]", soft_wrap=True)


def _load(arguments: argparse.Namespace) -> tuple[Params, dict[str, Method], Clip]:
    """The model, the methods, and the clip, which is read once for all methods.

    Raises:
        ValueError: as ``generate``; a method that does not fit this decoder.
    """
    keep = [] if arguments.share is None else [f"keep={arguments.share}"]
    methods = parse_methods(arguments.methods, [*arguments.set, *keep])
    params = load_checkpoint(arguments.checkpoint, arguments.dtype)
    config = params.config
    for name, method in methods.items():
        try:
            method.stages(config.text.layers)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    spec = window_spec(arguments, config.spec)
    family(config).check_spec(spec, config)
    clip = load_clip(
        arguments.clip,
        spec,
        max_frames=arguments.max_frames,
        max_windows=config.text.max_positions // config.window_positions,
        progress=sys.stderr.isatty(),
    )
    return params, methods, clip


def generate_answers(
    params: Params,
    clip: Clip | Path,
    questions: Sequence[str],
    methods: Mapping[str, Method],
    console: Console,
    timed: bool = True,
    **settings: Any,
) -> dict[str, list[Answer]]:
    """Answer questions with each method.

    Args:
        timed: ask twice, so that the times of the answers exclude compilation.
        settings: of ``generate``.

    Raises:
        ValueError: as ``generate``, with the method's name.
    """
    answers = {}
    for name, method in methods.items():
        settings["compression"] = method
        with console.status(f"compiling, then timing: {name}" if timed else name):
            for _ in range(1 + timed):
                try:
                    answers[name] = [generate(params, clip, each, **settings) for each in questions]
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
    return answers


def first_answers(answers: Mapping[str, list[Answer]]) -> dict[str, Answer]:
    """Each method's answer to the first question."""
    return {name: each[0] for name, each in answers.items()}


def cost_tables(
    params: Params, methods: Mapping[str, Method], answers: Mapping[str, Answer]
) -> tuple[Table, Table]:
    """Tokens of each answer; operations relative to all tokens, cache and times."""
    config = params.config
    value_bytes = family(config).compute_dtype(params.weights).itemsize
    counts = without_compression(next(iter(answers.values())).counts)
    full = cost(config.text, AllTokens(), counts)
    columns = right_aligned("audio", "video", "kept", "with text", "layers")
    title = "tokens that enter the decoder; layers: averaged over them"
    tokens = Table("method", *columns, title=title)
    columns = right_aligned("true count", "eq. 9", "cache", "encode", "prefill", "answer")
    title = "operations of the decoder, share of all tokens; cache; times"
    costs = Table("method", *columns, title=title)
    for name, answer in answers.items():
        counts, trace = answer.counts, answer.compression
        spent = cost(config.text, methods[name], counts, trace, value_bytes=value_bytes)
        tokens.add_row(
            name,
            f"{counts.audio_kept}/{counts.audio}",
            f"{counts.video_kept}/{counts.video}",
            *(f"{x:.1%}" for x in (spent.kept, spent.kept_with_text, spent.by_layer)),
        )
        costs.add_row(
            name,
            f"{size(spent.operations, ' ')} {spent.operations / full.operations:4.0%}",
            f"{spent.paper_operations / full.paper_operations:.0%}",
            f"{size(spent.cache_bytes, ' ')}B",
            *(seconds(answer.seconds[stage]) for stage in ("encoders", "prefill", "generation")),
        )
    return tokens, costs


def _draw_kept(answers: Mapping[str, Answer], folder: Path, console: Console) -> None:
    plot_methods(answers).savefig(folder / KEPT, dpi=DPI)
    console.print(f"Kept tokens: [bold]{folder / KEPT}[/]", soft_wrap=True)
