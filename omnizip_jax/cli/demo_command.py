"""``omnizip demo``: the small trained model answers questions about a generated clip.

With ``--stream`` the clip is one minute long and streams through a small cache, and the same
questions about its first ten seconds are asked three times. With ``--family qwen3-omni`` a tiny
Qwen3-Omni with random weights goes the way of released files: conversion, loading, answers.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.cli.arguments import END_OF_STREAM
from omnizip_jax.cli.clip_commands import cost_tables, first_answers, generate_answers, save_picture
from omnizip_jax.cli.console import OutputConsole, right_aligned
from omnizip_jax.cli.model_setup import load_checkpoint
from omnizip_jax.cli.stream_command import StreamDisplay
from omnizip_jax.cli.stream_loop import (
    AnswerEvent,
    Event,
    QuestionQueue,
    RetentionLog,
    WindowEvent,
    feed_source,
    format_time,
    init_compiled_stream,
)
from omnizip_jax.compression import AllTokens, FastV, Method, OmniZipConfig, RandomTokens
from omnizip_jax.inference.generation import Answer
from omnizip_jax.media import windows
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.clip_questions import FAMILIES, Question, all_questions, draw_questions
from omnizip_jax.testbed.random_checkpoint import write_random_checkpoint
from omnizip_jax.testbed.synthetic_clips import (
    CLIP_SEED,
    OPENING_SECONDS,
    SPEC,
    STREAM_SEED,
    STREAM_WINDOWS,
    SyntheticClip,
    objects_only_in_opening,
    sample_clip,
    sample_stream,
)
from omnizip_jax.visualize import plot_compression, plot_methods, plot_retention

PAPER_EXACT = "paper, 45 %"
SETTINGS: dict[str, Method] = {
    "all": AllTokens(),
    "45 %": OmniZipConfig(keep=0.45),
    "35 %": OmniZipConfig(keep=0.35),
    PAPER_EXACT: OmniZipConfig.paper(keep=0.45),
}
BASELINES: dict[str, Method] = {
    "random": RandomTokens(keep=0.35),
    "fastv": FastV(keep=0.35),  # prunes inside the decoder
}
MAX_NEW_TOKENS = 4  # answers are one word

# So small that tokens of the beginning are evicted long before the end.
STREAM_CACHE: dict[str, Any] = {"capacity": 1024, "memory": "fading", "text_slots": 160}
# The questions are asked at each of these times.
STREAM_TIMES = (OPENING_SECONDS, 4 * OPENING_SECONDS, END_OF_STREAM)
FIRST_WINDOWS = slice(0, OPENING_SECONDS // SPEC.seconds)
STREAM_KINDS = {  # kinds of questions that one object decides, by family
    "audio-visual": ("colour of sound", "shape of sound", "sound of colour"),
    "audio": ("length",),
    "video": ("shape of colour",),
}


def run_demo(arguments: argparse.Namespace) -> None:
    """Generate a clip in a folder, ask about it, print, draw."""
    if arguments.family == "qwen3-omni":
        if arguments.stream:
            raise ValueError("--family qwen3-omni shows a whole clip: leave out --stream")
        return family_demo(arguments.folder, arguments.clip_seed)
    run = stream_demo if arguments.stream else clip_demo
    return run(arguments.folder, arguments.clip_seed)


def clip_demo(folder: Path, seed: int | None) -> None:
    """Questions about a whole clip, answered with each of ``SETTINGS`` and ``BASELINES``."""
    console = OutputConsole()
    seed = CLIP_SEED if seed is None else seed
    clip = sample_clip(seed)
    params, path = _prepare(folder, clip, console)
    questions = _draw_clip_questions(clip, seed)
    texts = [question.text for question in questions]
    limit: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS}
    answers = generate_answers(params, path, texts, SETTINGS, console, **limit)
    console.print("[bold]3.[/] Questions about it, and the model's answers")
    console.print(_clip_answers_table(questions, answers))
    first = first_answers(answers)
    console.print(*cost_tables(params, SETTINGS, first))
    pictures = {"45 %": folder / "kept.png", PAPER_EXACT: folder / "paper.png"}
    for name, picture in pictures.items():
        plot_compression(first[name]).savefig(picture, dpi=130)
    console.print(
        f"[bold]4.[/] Tokens kept at 45 %: [bold]{pictures['45 %']}[/]; with the paper-exact "
        f"variant: [bold]{pictures[PAPER_EXACT]}[/]\n   docs/accuracy.md compares the two.",
        soft_wrap=True,
    )
    console.print("[bold]5.[/] Three methods side by side, 35 % averaged over the layers")
    baselines = generate_answers(params, path, texts, BASELINES, console, **limit)
    compared = {"omnizip": answers["35 %"]} | baselines
    first = first_answers(compared)
    console.print(_clip_answers_table(questions, compared))
    tokens, _ = cost_tables(params, {"omnizip": SETTINGS["35 %"], **BASELINES}, first)
    console.print(tokens)
    picture = folder / "methods.png"
    save_picture(plot_methods(first), picture, "   Tokens kept by each", console)
    console.out(  # without wrapping, so that commands can be copied
        f"\nYour own question, in similar words:\n  omnizip generate {path} "
        f"'{questions[-1].text}' --checkpoint small --set keep=0.45\n"
        f"Other methods: omnizip compare {path} '{questions[-1].text}' --keep 0.45\n"
        f"Another clip: omnizip demo --seed {seed + 1}. A stream: omnizip demo --stream",
        highlight=False,
    )


def stream_demo(folder: Path, seed: int | None) -> None:
    """Questions about the beginning of a stream, asked until its end."""
    console = OutputConsole()
    seed = STREAM_SEED if seed is None else seed
    clip = sample_stream(seed)
    params, path = _prepare(folder, clip, console)
    questions = draw_stream_questions(clip, seed)
    console.print(
        f"[bold]3.[/] Streaming it, window by window, into a cache of {STREAM_CACHE['capacity']} "
        f"tokens; asking {len(STREAM_TIMES)} times about its first {OPENING_SECONDS} seconds"
    )
    log, read = RetentionLog(), list[WindowEvent]()
    answers: dict[float, dict[str, str]] = {}  # by time and question
    retained: dict[float, tuple[int, int]] = {}  # of the beginning, by the time of a question
    timed = QuestionQueue(
        [(time, question.text) for time in STREAM_TIMES for question in questions]
    )
    with StreamDisplay(console) as display, windows(path, params.config.spec) as source:
        display.show_step("compiling (once)")
        modalities = {"audio": source.has_audio, "video": source.has_video}
        state = init_compiled_stream(params, SETTINGS["45 %"], **modalities, **STREAM_CACHE)

        def show(event: Event) -> None:
            if isinstance(event, WindowEvent):
                read.append(event)
                bars = log.bars(STREAM_WINDOWS)
                display.update(note=Text(f"retained of each window  {bars}", "cyan"))
            if isinstance(event, AnswerEvent):
                if event.time not in retained:
                    retained[event.time] = now, initial = log.count(FIRST_WINDOWS)
                    line = f"[{format_time(event.time)}] {now} of {initial} tokens left of "
                    bars = log.bars(STREAM_WINDOWS)
                    console.print(Text(f"{line}0-{OPENING_SECONDS} s  {bars}", "cyan"))
                answers.setdefault(event.time, {})[event.question] = event.text.strip()
            display(event)

        feed_source(
            params,
            state,
            source,
            timed,
            show,
            on_text=display.add_text,
            on_state=log,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    console.print(_intervals_table(read, log))
    console.print(
        f"[bold]4.[/] The first {OPENING_SECONDS} seconds: retained tokens, and the answers"
    )
    texts = {
        f"at {format_time(time)}": [by_question.get(each.text, "") for each in questions]
        for time, by_question in answers.items()
    }
    counts = [f"{now} of {initial}" for now, initial in retained.values()]
    last_row = ["tokens left in the cache", "", *counts]
    console.print(_answers_table(questions, texts, last_row))
    picture = folder / "retained.png"
    marks = {time: f"asked, {format_time(time)}" for time in retained}
    plot_retention(log.retained, log.initial, SPEC.seconds, marks).savefig(picture, dpi=130)
    console.print(f"   Retained tokens of every window: [bold]{picture}[/]", soft_wrap=True)
    console.out(  # without wrapping, so that commands can be copied
        f"\nStream it again, and type a question: omnizip stream {path} --realtime "
        f"--checkpoint small --memory {STREAM_CACHE['memory']}",
        highlight=False,
    )


def family_demo(folder: Path, seed: int | None) -> None:
    """A tiny Qwen3-Omni with random weights: convert, load, ask with each of ``SETTINGS``."""
    console = OutputConsole()
    seed = CLIP_SEED if seed is None else seed
    clip = sample_clip(seed)
    released, checkpoint = folder / "qwen3-omni-released", folder / "qwen3-omni"
    console.print(
        f"[bold]1.[/] A tiny Qwen3-Omni in the released layout, [bold]{released}[/]: "
        "experts, DeepStack and 8 s audio blocks, random weights. Its answers mean nothing.",
        soft_wrap=True,
    )
    shutil.rmtree(checkpoint, ignore_errors=True)
    write_random_checkpoint(released)
    console.print(f"[bold]2.[/] Converted: {convert(released, checkpoint)}", soft_wrap=True)
    params = load_checkpoint(str(checkpoint), "float32", notice=False)
    path = clip.write(folder / "clip.mp4")
    questions = [question.text for question in _draw_clip_questions(clip, seed)[:1]]
    answers = generate_answers(
        params, path, questions, SETTINGS, console, max_new_tokens=MAX_NEW_TOKENS
    )
    console.print(f"[bold]3.[/] Asked about {path} with all tokens and with fewer", soft_wrap=True)
    first = first_answers(answers)
    console.print(*cost_tables(params, SETTINGS, first))
    picture = folder / "qwen3-omni-kept.png"
    save_picture(plot_compression(first["45 %"]), picture, "[bold]4.[/] Kept at 45 %", console)
    console.out(  # without wrapping, so that commands can be copied
        "\nWith released weights:\n"
        "  omnizip convert Qwen3-Omni-30B-A3B-Instruct qwen3-omni --dtype int8\n"
        f"  omnizip generate clip.mp4 '{questions[0]}' --checkpoint qwen3-omni --set keep=0.45",
        highlight=False,
    )


def _prepare(folder: Path, clip: SyntheticClip, console: Console) -> tuple[Params, Path]:
    """Load the small model and write a clip to a file: steps 1 and 2."""
    console.print(
        "[bold]1.[/] The small model of this package: Qwen2.5-Omni's thinker with 2 million "
        "parameters, trained on generated clips of shapes and sounds, in the released layout."
    )
    # bfloat16, the dtype of the released weights on a GPU, is slow on a CPU.
    dtype = "float32" if jax.default_backend() == "cpu" else None
    params = load_checkpoint("small", dtype, notice=False)
    path = clip.write(folder / "clip.mp4")
    console.print(f"[bold]2.[/] A clip that is not in its training data, [bold]{path}[/]:")
    table = Table(*right_aligned("second"), "shape", "sound")
    for obj in clip.objects:
        length = "long" if obj.long else "short"
        sound = f"{obj.sound}, {length}" if obj.sound else "(silent)"
        table.add_row(f"{obj.second}-{obj.second + 1}", f"{obj.colour} {obj.shape}", sound)
    console.print(table)
    return params, path


def _draw_clip_questions(clip: SyntheticClip, seed: int) -> list[Question]:
    """Two questions of each family, or one where the clip has one kind only."""
    random, questions = np.random.default_rng(seed), []
    for family in FAMILIES:
        kinds = {question.kind for question in all_questions(clip.objects, family)}
        questions += draw_questions(clip.objects, random, min(2, len(kinds)), kinds)
    return questions


def draw_stream_questions(clip: SyntheticClip, seed: int) -> list[Question]:
    """A question of each family about an object that only the first ten seconds contain."""
    random, objects = np.random.default_rng(seed), objects_only_in_opening(clip.objects)
    return [
        question
        for family in FAMILIES
        for question in draw_questions(objects, random, 1, STREAM_KINDS[family])
    ]


def _clip_answers_table(questions: list[Question], answers: dict[str, list[Answer]]) -> Table:
    """The answers of each method, and how many are correct."""
    texts = {name: [answer.text.strip() for answer in each] for name, each in answers.items()}
    right = (
        sum(text == question.answer for text, question in zip(each, questions, strict=True))
        for each in texts.values()
    )
    counts = [f"{number} of {len(questions)}" for number in right]
    return _answers_table(questions, texts, ["right answers", "", *counts])


def _answers_table(
    questions: list[Question], texts: Mapping[str, list[str]], last_row: list[str]
) -> Table:
    """Every question with its correct answer, and the answers in columns by their headings."""
    table = Table("question", "truth", *texts)
    for index, question in enumerate(questions):
        marked = [_marked(each[index], question) for each in texts.values()]
        last = question is questions[-1] or questions[index + 1].family != question.family
        table.add_row(question.text, question.answer, *marked, end_section=last)
    table.add_row(*last_row)
    return table


def _marked(text: str, question: Question) -> str:
    """An answer in green if it is correct, otherwise in red with a cross."""
    return f"[green]{text}[/]" if text == question.answer else f"[red]✗ {text}[/]"


def _intervals_table(read: list[WindowEvent], log: RetentionLog) -> Table:
    """Tokens, time and speed of every ten seconds of the stream."""
    headings = ("seconds", "audio", "video", "kept", "left", "a window", "speed")
    title = "every ten seconds of the stream: tokens, and those left at its end"
    table = Table(*right_aligned(*headings), title=title)
    for start in range(0, len(read), FIRST_WINDOWS.stop):
        part = slice(start, min(start + FIRST_WINDOWS.stop, len(read)))
        events = read[part]
        left, kept = log.count(part)
        milliseconds = float(np.median([event.milliseconds for event in events]))
        table.add_row(
            f"{part.start * SPEC.seconds}-{part.stop * SPEC.seconds}",
            f"{sum(e.audio_kept for e in events)}/{sum(e.audio for e in events)}",
            f"{sum(e.video_kept for e in events)}/{sum(e.video for e in events)}",
            str(kept),
            f"{left} = {left / max(kept, 1):.0%}",
            f"{milliseconds:.0f} ms",
            f"{1e3 * SPEC.seconds / milliseconds:.1f}x real time",
        )
    return table
