"""``omnizip demo --stream``: a minute in a small cache, asked about its first ten seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from omnizip_jax.cli.demo import MAX_NEW_TOKENS, SETTINGS, marked, prepare
from omnizip_jax.cli.follow import Answered, Event, Questions, WindowRead, begin_stream, follow
from omnizip_jax.cli.remembering import Remembering, plot_remembering
from omnizip_jax.cli.terminal import Screen, Terminal
from omnizip_jax.cli.times import END, clock
from omnizip_jax.media import windows
from omnizip_jax.testbed.clip_questions import FAMILIES, Question, draw_questions
from omnizip_jax.testbed.demo_clips import (
    BEGINNING,
    STREAM_SEED,
    STREAM_WINDOWS,
    only_at_the_beginning,
    sample_stream,
)
from omnizip_jax.testbed.synthetic_clips import SPEC, TestClip

# So small that what came in the beginning must be thinned long before the end.
CACHE: dict[str, Any] = {"capacity": 1024, "memory": "fading", "text_slots": 160}
TIMES = (BEGINNING, 4 * BEGINNING, END)  # at which the same questions are asked
FIRST = slice(0, BEGINNING // SPEC.seconds)  # windows
# What is asked: kinds that one thing decides, by family.
KINDS = {
    "audio-visual": ("colour of sound", "shape of sound", "sound of colour"),
    "audio": ("length",),
    "video": ("shape of colour",),
}


def run_stream(folder: Path, seed: int | None) -> None:
    """Make a clip in ``folder``, stream it, ask about its beginning until its end, print, draw."""
    console = Terminal()
    seed = STREAM_SEED if seed is None else seed
    params, clip, path = prepare(folder, lambda: sample_stream(seed), console)
    questions = about_the_beginning(clip, seed)
    console.print(
        f"[bold]3.[/] Streaming it, window by window, into a cache of {CACHE['capacity']} tokens "
        f"that fades; asking about its first {BEGINNING} seconds, again and again"
    )
    seen, read = Remembering(), list[WindowRead]()
    answered: dict[float, list[Answered]] = {}
    left: dict[float, tuple[int, int]] = {}
    timed = Questions([(time, question.text) for time in TIMES for question in questions])
    with Screen(console) as screen, windows(path, params.config.spec) as source:
        screen.status("compiling (once)")
        sides = {"audio": source.has_audio, "video": source.has_video}
        state = begin_stream(params, SETTINGS["45 %"], **sides, **CACHE)

        def show(event: Event) -> None:
            if isinstance(event, WindowRead):
                read.append(event)
                screen.note(Text(f"left of each window  {seen.bars(STREAM_WINDOWS)}", "cyan"))
            if isinstance(event, Answered):
                if event.time not in left:
                    left[event.time] = seen.of(FIRST)
                    console.print(Text(_of_the_beginning(event.time, seen), "cyan"))
                answered.setdefault(event.time, []).append(event)
            screen(event)

        follow(
            params,
            state,
            source,
            timed,
            show,
            on_text=screen.text,
            on_state=seen,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    console.print(stretches_table(read, seen))
    console.print(
        f"[bold]4.[/] The first {BEGINNING} seconds: what was left of them, and what it said"
    )
    console.print(beginning_table(questions, answered, left))
    picture = folder / "remembered.png"
    plot_remembering(seen, SPEC.seconds, list(left)).savefig(picture, dpi=130)
    console.print(f"   What was left of every window: [bold]{picture}[/]", soft_wrap=True)
    console.print(
        f"\nWatch on, and type a question: omnizip stream {path} --realtime --checkpoint small "
        f"--memory {CACHE['memory']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def about_the_beginning(clip: TestClip, seed: int) -> list[Question]:
    """A question of each family about what is there in the first ten seconds and never again."""
    random, things = np.random.default_rng(seed), only_at_the_beginning(clip.things)
    return [
        question
        for family in FAMILIES
        for question in draw_questions(things, random, 1, KINDS[family])
    ]


def stretches_table(read: list[WindowRead], seen: Remembering) -> Table:
    """What became of every ten seconds."""
    table = Table(title="every ten seconds of the stream: tokens, and what is left at its end")
    for heading in ("seconds", "audio", "video", "kept", "left", "a window", "speed"):
        table.add_column(heading, justify="right")
    for start in range(0, len(read), FIRST.stop):
        part = slice(start, min(start + FIRST.stop, len(read)))
        own = read[part]
        kept = [
            sum(getattr(window, name) for window in own) for name in ("audio_kept", "video_kept")
        ]
        came = [sum(getattr(window, name) for window in own) for name in ("audio", "video")]
        left, entered = seen.of(part)
        took = float(np.median([window.milliseconds for window in own]))
        table.add_row(
            f"{part.start * SPEC.seconds}-{part.stop * SPEC.seconds}",
            *(f"{k}/{c}" for k, c in zip(kept, came, strict=True)),
            str(entered),
            f"{left} = {left / max(entered, 1):.0%}",
            f"{took:.0f} ms",
            f"{1e3 * SPEC.seconds / took:.1f}x real time",
        )
    return table


def beginning_table(
    questions: list[Question],
    answered: dict[float, list[Answered]],
    left: dict[float, tuple[int, int]],
) -> Table:
    """The questions, and the answers at each time under what was left by then."""
    table = Table()
    for heading in ("question", "truth", *(f"at {clock(time)}" for time in answered)):
        table.add_column(heading)
    for question in questions:
        said = [
            next((a.text for a in own if a.question == question.text), "")
            for own in answered.values()
        ]
        last = question is questions[-1]
        marks = (marked(text, question) for text in said)
        table.add_row(question.text, question.answer, *marks, end_section=last)
    counts = (f"{now} of {came}" for now, came in left.values())
    table.add_row("tokens left in the cache", "", *counts)
    return table


def _of_the_beginning(time: float, seen: Remembering) -> str:
    now, came = seen.of(FIRST)
    return (
        f"[{clock(time)}] {now} of {came} tokens left of 0-{BEGINNING} s  "
        f"{seen.bars(STREAM_WINDOWS)}"
    )
