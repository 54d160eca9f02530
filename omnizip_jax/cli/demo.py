"""``omnizip demo``: the small trained model answers questions about a clip made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from omnizip_jax.checkpoint.load import load
from omnizip_jax.cli.compare import costs_of, tokens_table
from omnizip_jax.cli.terminal import Terminal
from omnizip_jax.compression import AllTokens, FastV, Method, OmniZipConfig, RandomTokens
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.generation import Answer
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.clip_questions import (
    FAMILIES,
    Question,
    all_questions,
    draw_questions,
)
from omnizip_jax.testbed.demo_clips import CLIP_SEED, sample_clip
from omnizip_jax.testbed.synthetic_clips import TestClip
from omnizip_jax.visualize import plot_compression, plot_methods

LETTER = "paper, 45 %"
# All tokens, the shares that the paper measures, and the paper to the letter.
SETTINGS: dict[str, Method] = {
    "all": AllTokens(),
    "45 %": OmniZipConfig(keep=0.45),
    "35 %": OmniZipConfig(keep=0.35),
    LETTER: OmniZipConfig.paper(keep=0.45),
}
# Beside omnizip.
RIVALS: dict[str, Method] = {
    "random": RandomTokens(keep=0.35),
    "fastv": FastV(keep=0.35),  # which prunes inside the decoder
}
MAX_NEW_TOKENS = 4  # answers are one word


def run(folder: Path, seed: int | None) -> None:
    """Make a clip in ``folder``, answer questions about it at each setting, print, draw."""
    console = Terminal()
    seed = CLIP_SEED if seed is None else seed
    params, clip, path = prepare(folder, lambda: sample_clip(seed), console)
    questions = ask_about(clip, seed, 2)
    answers = _answer(params, path, questions, SETTINGS, console)
    console.print("[bold]3.[/] Questions about it, and what the model says")
    console.print(answers_table(questions, answers))
    console.print(results_table(answers))
    pictures = {"45 %": folder / "kept.png", LETTER: folder / "letter.png"}
    for name, picture in pictures.items():
        plot_compression(answers[name][0]).savefig(picture, dpi=130)
    console.print(
        f"[bold]4.[/] What was kept at 45 %: [bold]{pictures['45 %']}[/]; by the paper to the "
        f"letter: [bold]{pictures[LETTER]}[/]\n   docs/accuracy.md says what the "
        "letter costs, and why.",
        soft_wrap=True,
    )
    console.print("[bold]5.[/] Three methods beside each other, 35 % averaged over the layers")
    rivals = {"omnizip": answers["35 %"]} | _answer(params, path, questions, RIVALS, console)
    first = {name: said for name, (said, *_) in rivals.items()}
    costs = costs_of(params, {"omnizip": SETTINGS["35 %"], **RIVALS}, first)
    console.print(answers_table(questions, rivals))
    console.print(tokens_table(first, costs))
    picture = folder / "methods.png"
    plot_methods(first).savefig(picture, dpi=110)
    console.print(f"   What each kept: [bold]{picture}[/]", soft_wrap=True)
    console.print(
        f"\nAsk something else, in words like these:\n  omnizip generate {path} "
        f"'{questions[-1].text}' --checkpoint small --set keep=0.45\n"
        f"Other methods: omnizip compare {path} '{questions[-1].text}' --keep 0.45\n"
        f"Another clip: omnizip demo --seed {seed + 1}. Window by window: omnizip demo --stream",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _answer(
    params: Params,
    clip: Path,
    questions: list[Question],
    settings: Mapping[str, Method],
    console: Console,
) -> dict[str, list[Answer]]:
    """The answers to all questions at each setting, timed without compilation."""
    answers: dict[str, list[Answer]] = {}
    for name, compression in settings.items():
        with console.status(f"compiling, then timing: {name}"):
            for _ in range(2):
                answers[name] = [
                    generate(
                        params,
                        clip,
                        question.text,
                        compression=compression,
                        max_new_tokens=MAX_NEW_TOKENS,
                    )
                    for question in questions
                ]
    return answers


def prepare(
    folder: Path, make: Callable[[], TestClip], console: Console
) -> tuple[Params, TestClip, Path]:
    """The small model, and a clip, in memory and as a file: steps 1 and 2."""
    console.print(
        "[bold]1.[/] The small model that comes along: Qwen2.5-Omni's thinker with 2 million "
        "parameters, trained on clips made of shapes and sounds, in the released layout."
    )
    # bfloat16 is slow on a CPU, and what the released weights run in on a GPU.
    params = load("small", dtype="float32" if jax.default_backend() == "cpu" else None)
    with console.status("making a clip"):
        clip = make()
    path = clip.write(folder / "clip.mp4")
    console.print(f"[bold]2.[/] A clip that it has never seen, [bold]{path}[/]; what happens in it")
    console.print(events_table(clip))
    return params, clip, path


def ask_about(clip: TestClip, seed: int, each: int) -> list[Question]:
    """So many questions of each family, fewer where there are not so many kinds to ask."""
    random, questions = np.random.default_rng(seed), []
    for family in FAMILIES:
        kinds = {question.kind for question in all_questions(clip.things, family)}
        questions += draw_questions(clip.things, random, min(each, len(kinds)), kinds)
    return questions


def events_table(clip: TestClip) -> Table:
    """What is to be seen and heard, second by second."""
    table = Table()
    for heading in ("second", "shape", "sound"):
        table.add_column(heading, justify="right" if heading == "second" else "left")
    for thing in clip.things:
        length = "long" if thing.long else "short"
        sound = f"{thing.sound}, {length}" if thing.sound else "(silent)"
        table.add_row(f"{thing.slot}-{thing.slot + 1}", f"{thing.colour} {thing.shape}", sound)
    return table


def answers_table(questions: list[Question], answers: dict[str, list[Answer]]) -> Table:
    """Every question with its true answer, and the answers at each setting."""
    table = Table()
    for heading in ("question", "truth", *answers):
        table.add_column(heading)
    for index, question in enumerate(questions):
        said = [marked(each[index].text, question) for each in answers.values()]
        last = question is questions[-1] or questions[index + 1].family != question.family
        table.add_row(question.text, question.answer, *said, end_section=last)
    right = (
        sum(a.text.strip() == q.answer for a, q in zip(each, questions, strict=True))
        for each in answers.values()
    )
    table.add_row("right answers", "", *(f"{number} of {len(questions)}" for number in right))
    return table


def marked(text: str, question: Question) -> str:
    """An answer, in the colour that says whether it is right."""
    text = text.strip()
    return f"[green]{text}[/]" if text == question.answer else f"[red]✗ {text}[/]"


def results_table(answers: dict[str, list[Answer]]) -> Table:
    """Tokens and times of the first question at each setting."""
    table = Table(title="tokens and times of one question, without compilation")
    for heading in ("tokens", "audio", "video", "kept", "media", "encode", "prefill", "answer"):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for name, (answer, *_) in answers.items():
        counts, seconds = answer.counts, answer.seconds
        table.add_row(
            name,
            f"{counts.audio_kept}/{counts.audio}",
            f"{counts.video_kept}/{counts.video}",
            f"{counts.retained:.1%}",
            *(
                f"{seconds[stage] * 1e3:.0f} ms"
                for stage in ("media", "encoders", "prefill", "generation")
            ),
        )
    return table
