"""Several methods beside each other on one clip: answers, tokens, cost, time, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from omnizip_jax.cli.terminal import Terminal
from omnizip_jax.compression import AllTokens, Method
from omnizip_jax.config import WindowSpec
from omnizip_jax.evaluation.decoder_cost import Cost, cost, without_compression
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.attention_maps import compute_attention_maps
from omnizip_jax.inference.generation import Answer
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.params import Params
from omnizip_jax.models.registry import family
from omnizip_jax.visualize import plot_attention, plot_methods

KEPT, ATTENTION = "kept.png", "attention.png"
DOTS = 110  # an inch


def compare(
    params: Params,
    methods: Mapping[str, Method],
    clip: Clip,
    question: str,
    folder: Path,
    **settings: Any,
) -> None:
    """Ask under each method, print the tables, draw what was kept.

    Args:
        settings: of ``generate``.
    """
    console = Terminal()
    answers = answers_of(params, clip, question, methods, console, **settings)
    costs = costs_of(params, methods, answers)
    console.print(said_table(answers))
    console.print(tokens_table(answers, costs))
    console.print(cost_table(answers, costs, full_cost(params, next(iter(answers.values())))))
    console.print(f"What was kept: [bold]{draw(answers, folder)}[/]", soft_wrap=True)


def picture(
    params: Params,
    methods: Mapping[str, Method],
    clip: Clip,
    question: str,
    folder: Path,
    seed: int,
) -> None:
    """Draw what each method keeps of a clip, and where the decoder attends."""
    console = Terminal()
    settings: dict[str, Any] = {"max_new_tokens": 1, "seed": seed}
    answers = answers_of(params, clip, question, methods, console, timed=False, **settings)
    console.print(f"What was kept: [bold]{draw(answers, folder)}[/]", soft_wrap=True)
    seen = {}
    for name, method in methods.items():
        with console.status(f"attention: {name}"):
            seen[name] = compute_attention_maps(params, clip, question, method, seed=seed)
    path = folder / ATTENTION
    plot_attention(seen).savefig(path, dpi=DOTS)
    console.print(f"Where the decoder attends: [bold]{path}[/]", soft_wrap=True)


def load_once(
    params: Params, source: str, spec: WindowSpec, max_frames: int | None, progress: bool
) -> Clip:
    """A clip that several methods read; errors as ``generate``."""
    config = params.config
    family(config).check_spec(spec, config)
    return load_clip(
        source,
        spec,
        max_frames=max_frames,
        max_windows=config.text.max_positions // config.window_positions,
        progress=progress,
    )


def check_methods(params: Params, methods: Mapping[str, Method]) -> None:
    """Raise ``ValueError`` where a method's stages do not fit this decoder."""
    for name, method in methods.items():
        try:
            method.stages(params.config.text.layers)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def answers_of(
    params: Params,
    clip: Clip,
    question: str,
    methods: Mapping[str, Method],
    console: Console,
    *,
    timed: bool = True,
    **settings: Any,
) -> dict[str, Answer]:
    """One question, answered under each method.

    Args:
        timed: ask twice, so that the seconds are those of compiled programs.
        settings: of ``generate``.

    Raises:
        ValueError: as ``generate``, with the method's name.
    """
    answers = {}
    for name, method in methods.items():
        with console.status(f"compiling, then timing: {name}" if timed else name):
            for _ in range(1 + timed):
                try:
                    answers[name] = generate(params, clip, question, compression=method, **settings)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
    return answers


def costs_of(
    params: Params, methods: Mapping[str, Method], answers: Mapping[str, Answer]
) -> dict[str, Cost]:
    """What each answer cost."""
    config = params.config
    size = family(config).weights_dtype(params.weights).itemsize
    return {
        name: cost(config.text, methods[name], answer.counts, answer.compression, value_bytes=size)
        for name, answer in answers.items()
    }


def full_cost(params: Params, answer: Answer) -> Cost:
    """What the same prompt costs with all of its tokens."""
    return cost(params.config.text, AllTokens(), without_compression(answer.counts))


def said_table(answers: Mapping[str, Answer]) -> Table:
    """What was answered under each method."""
    table = Table("method", "answer")
    for name, answer in answers.items():
        table.add_row(name, answer.text.strip() or "(nothing)")
    return table


def tokens_table(answers: Mapping[str, Answer], costs: Mapping[str, Cost]) -> Table:
    """Tokens by modality, and how much the layers read."""
    table = Table(title="tokens that enter the decoder; layers: averaged over them")
    headings = ("method", "audio", "video", "kept", "with text", "layers")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, answer in answers.items():
        counts, spent = answer.counts, costs[name]
        table.add_row(
            name,
            f"{counts.audio_kept}/{counts.audio}",
            f"{counts.video_kept}/{counts.video}",
            *(f"{x:.1%}" for x in (spent.kept, spent.kept_with_text, spent.by_layer)),
        )
    return table


def cost_table(answers: Mapping[str, Answer], costs: Mapping[str, Cost], full: Cost) -> Table:
    """Operations against all tokens by the true count and by eq. 9, cache, times."""
    table = Table(title="operations of the decoder, share of all tokens; cache; times")
    headings = ("method", "true count", "eq. 9", "cache", "encode", "prefill", "answer")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, answer in answers.items():
        spent, seconds = costs[name], answer.seconds
        table.add_row(
            name,
            f"{_scaled(spent.operations)} {spent.operations / full.operations:4.0%}",
            f"{spent.paper_operations / full.paper_operations:.0%}",
            f"{_scaled(spent.cache_bytes)}B",
            *(_time(seconds[stage]) for stage in ("encoders", "prefill", "generation")),
        )
    return table


def draw(answers: Mapping[str, Answer], folder: Path) -> Path:
    """The picture of what each method kept."""
    path = folder / KEPT
    plot_methods(answers).savefig(path, dpi=DOTS)
    return path


def _scaled(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} "


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
