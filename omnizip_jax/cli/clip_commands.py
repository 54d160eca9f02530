"""``omnizip generate``, ``compare``, ``picture`` and ``methods``: one clip, and the methods."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from omnizip_jax.cli.console import OutputConsole, right_aligned
from omnizip_jax.cli.model_setup import load_checkpoint, parse_method, parse_methods, window_spec
from omnizip_jax.compression import METHODS, AllTokens, Method
from omnizip_jax.compression.decoder_stages import PUBLISHED_LAYERS
from omnizip_jax.evaluation.decoder_cost import cost, without_compression
from omnizip_jax.evaluation.markdown_tables import seconds, size
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.attention_maps import compute_attention_maps
from omnizip_jax.inference.generation import Answer
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import family
from omnizip_jax.visualize import plot_attention, plot_compression, plot_methods


def run_generate(arguments: argparse.Namespace) -> None:
    """Print the answer as it is generated, then tokens and times on stderr."""
    method = parse_method(arguments.method, arguments.set)
    params = load_checkpoint(
        arguments.checkpoint, arguments.dtype, arguments.devices, arguments.cache_dtype
    )
    answer = generate(
        params,
        arguments.clip,
        arguments.question,
        compression=method,
        max_new_tokens=arguments.max_new_tokens,
        system=arguments.system,
        use_audio=not arguments.no_audio,
        use_video=not arguments.no_video,
        max_frames=arguments.max_frames,
        spec=window_spec(arguments, params.config.spec),
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        audio_stream=arguments.audio_stream,
        video_stream=arguments.video_stream,
        on_text=lambda text: print(text, end="", flush=True),
        progress=sys.stderr.isatty(),
    )
    print()
    counts = answer.counts
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in answer.seconds.items())
    print(
        f"[audio {counts.audio_kept}/{counts.audio}, video {counts.video_kept}/{counts.video} "
        f"tokens = {counts.retained:.0%}; {seconds}]",
        file=sys.stderr,
    )
    if arguments.picture:
        plot_compression(answer).savefig(arguments.picture)
        print(f"[picture: {arguments.picture}]", file=sys.stderr)


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
    save_picture(plot_methods(answers), arguments.folder / "kept.png", "Kept tokens", console)


def run_picture(arguments: argparse.Namespace) -> None:
    """Draw which tokens each method keeps of a clip, and where the decoder attends."""
    params, methods, clip = _load(arguments)
    console = OutputConsole()
    question, seed = arguments.question, arguments.seed
    settings = {"max_new_tokens": 1, "seed": seed}
    answers = generate_answers(params, clip, [question], methods, console, False, **settings)
    kept = plot_methods(first_answers(answers))
    save_picture(kept, arguments.folder / "kept.png", "Kept tokens", console)
    maps = {}
    for name, method in methods.items():
        with console.status(f"attention: {name}"):
            maps[name] = compute_attention_maps(params, clip, question, method, seed=seed)
    path = arguments.folder / "attention.png"
    save_picture(plot_attention(maps), path, "Where the decoder attends", console)


def run_methods(arguments: argparse.Namespace) -> None:
    """List the methods, or the settings of one."""
    console = OutputConsole()
    if arguments.name is not None:
        kind = type(parse_method(arguments.name, ()))
        console.print(inspect.getdoc(kind), markup=False, highlight=False)
        table = Table("setting", "default", box=box.SIMPLE_HEAD, pad_edge=False)
        for field in dataclasses.fields(kind):
            table.add_row(field.name, str(field.default))
        console.print(table)
        return
    headings = ("method", "streams", "in decoder", "description")
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in METHODS.items():
        method = kind()
        properties = (
            "yes" if each else "" for each in (method.streams, method.stages(PUBLISHED_LAYERS))
        )
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        summary = summary.replace("``", "").partition(";")[0].rstrip(".")
        table.add_row(name, *properties, summary)
    console.print(table)
    console.print("Settings of one method: omnizip methods NAME", highlight=False)


def _load(arguments: argparse.Namespace) -> tuple[Params, dict[str, Method], Clip]:
    """The model, the methods, and the clip, which is read once for all methods.

    Raises:
        ValueError: as ``generate``; a method that does not fit this decoder.
    """
    keep = [] if arguments.share is None else [f"keep={arguments.share}"]
    methods = parse_methods(arguments.methods, [*arguments.set, *keep])
    params = load_checkpoint(arguments.checkpoint, arguments.dtype, arguments.devices)
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
    value_bytes = params.dtype.itemsize
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


def save_picture(figure: Figure, path: Path, title: str, console: Console) -> None:
    """Write a picture, and print its path."""
    figure.savefig(path, dpi=110)
    console.print(f"{title}: [bold]{path}[/]", soft_wrap=True)
