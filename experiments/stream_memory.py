"""``python -m experiments.stream_memory``: what does a stream still know of long ago?

Streams far longer than the cache go in window by window, through the functions that a user calls.
At the end every memory is asked about what happened 2 s, 30 s, 2 min and 10 min before, beside a
cache that never forgets. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.commands import add_checkpoint
from experiments.resumable import append, resume
from experiments.stream_memory_clips import AGES, STREAM_WINDOWS, Ages, ages_within, make_stream
from experiments.stream_memory_tables import (
    UNBOUNDED,
    Summary,
    ages_table,
    differences_table,
    kinds_table,
    plot_memory,
    row_name,
    summarise,
)
from experiments.training_batches import cut
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.compression.share import Share
from omnizip_jax.evaluation.evaluator import StreamSettings
from omnizip_jax.evaluation.markdown_tables import section
from omnizip_jax.inference.context import Context, Memory
from omnizip_jax.inference.generation import ask
from omnizip_jax.inference.streaming import feed
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.clip_questions import Question
from omnizip_jax.testbed.synthetic_clips import SPEC, Split
from omnizip_jax.types import Window

SLOTS = 1280  # of a cache that forgets: 42 windows at 25 %, and less of them once it was full
SHARES = (0.25, 0.45)
UNBOUNDED_SHARE = 0.25
TEXT_SLOTS = 64  # a question and one token of an answer
PROMPT = 512  # slots beside the media: the prompt, a window, a question

# Methods that can be set by a share and follow a stream, by name.
STREAMING = {
    name: kind for name, kind in METHODS.items() if issubclass(kind, Share) and kind.streams is True
}


class Row(NamedTuple):
    """A memory at a kept share."""

    memory: Memory
    keep: float
    slots: int
    bounded: bool = True

    @property
    def name(self) -> str:
        return row_name(self.memory if self.bounded else UNBOUNDED, self.keep)


def rows_of(windows: int, slots: int) -> list[Row]:
    """Every memory at every share, and a cache in which streams of so many windows have room."""
    rows = [Row(memory, keep, slots) for memory in typing.get_args(Memory) for keep in SHARES]
    # Room costs nothing until it is filled, and the plan of a stream may keep a little more.
    most = 1.1 * UNBOUNDED_SHARE * windows * (SPEC.audio_slots + SPEC.video_slots)
    return [*rows, Row("recent", UNBOUNDED_SHARE, math.ceil(most) + PROMPT, bounded=False)]


def watch(
    params: Params,
    windows: Window,
    method: Method,
    row: Row,
    seed: int = 0,
    on_window: Callable[[], object] = lambda: None,
) -> Context:
    """Feed a stream, window by window.

    Args:
        windows: leading axis W on every leaf.
        seed: for methods that draw.
        on_window: called after each.

    Raises:
        ValueError: a cache that should have had room for everything forgot something.
    """
    stream_settings = StreamSettings(memory=row.memory, capacity=row.slots)
    state = stream_settings.init(params, method, SPEC, TEXT_SLOTS, seed=seed)
    for number in range(len(windows.mel_length)):
        state = feed(params, state, jax.tree.map(lambda x, at=number: x[at], windows))
        on_window()
    if not row.bounded and int(state.cache.length) < int(np.sum(state.kept)):
        raise ValueError(f"{method} keeps more than {row.keep:.0%}: {row.slots} slots are too few")
    return state


def question_by_question(
    params: Params, state: Context, questions: Sequence[tuple[str, Question]]
) -> Iterator[tuple[str, str, int]]:
    """Age, kind, and whether the answer was right: its first token decides, as everywhere here."""
    for age, question in questions:
        answer, _ = ask(params, state, question.text, max_new_tokens=1)
        truth = params.tokenizer.encode(question.answer)[0]
        yield age, question.kind, int(answer.token_ids[0] == truth)


def about(params: Params, name: str, split: Split, windows: int, slots: int, ages: Ages) -> dict:
    """What a file of results was measured with: its first line."""
    return {
        "weights": params.fingerprint,
        "split": split,
        "windows": windows,
        "slots": slots,
        "ages": {age: list(reach) for age, reach in ages.items()},
        "methods": [repr(STREAMING[name](keep=keep)) for keep in SHARES],
    }


def remember_to(
    file: Path,
    params: Params,
    streams: int,
    name: str = "omnizip",
    split: Split = "validation",
    windows: int = STREAM_WINDOWS,
    slots: int = SLOTS,
    ages: Ages = AGES,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measure every row on the first ``streams`` streams, going on from what the file holds.

    A line has the stream's seed, the row, the kept share, slots in use at the end, and of every
    answer the age, the kind and whether it was right.

    Raises:
        ValueError: the file was measured with something else, or a stream has no age.
    """
    ages = ages_within(windows * SPEC.seconds, ages)
    done = resume(file, about(params, name, split, windows, slots, ages))
    there = {(line["stream"], line["row"]) for line in done}
    rows = rows_of(windows, slots)
    missing = {
        stream: [row for row in rows if (stream, row.name) not in there]
        for stream in range(streams)
    }
    total = windows * sum(map(len, missing.values()))
    with tqdm(total=total, unit="window", disable=not progress) as bar:
        for stream, own in missing.items():
            if not own:
                continue
            clip, questions = make_stream(stream, split, windows, ages)
            cuts = cut(clip)
            for row in own:
                bar.set_description(f"stream {stream}, {row.name}")
                method = STREAMING[name](keep=row.keep)
                state = watch(params, cuts, method, row, stream, bar.update)
                line = {
                    "stream": stream,
                    "row": row.name,
                    "kept": round(int(np.sum(state.kept)) / int(np.sum(state.seen)), 4),
                    "slots": int(state.cache.length),
                    "answers": [list(x) for x in question_by_question(params, state, questions)],
                }
                append(file, line)
                done.append(line)
    wanted = {row.name for row in rows}
    return [line for line in done if line["stream"] < streams and line["row"] in wanted]


def write_tables(summary: Summary, header: dict[str, Any], folder: Path, stem: str) -> None:
    """The summary, its tables and its curves."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"measured": header, "rows": summary}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    minutes = header["windows"] * SPEC.seconds / 60
    parts = [
        f"# What a stream remembers: whole tables\n\nStreams of {minutes:.3g} minutes "
        f"({header['split']} seeds), window by window into a cache of {header['slots']:,} slots; "
        "questions at the end, about what happened so long before. In brackets: 95 % intervals "
        f"over streams.\n\n{ages_table(summary)}",
        section("Minus an unbounded cache", differences_table(summary)),
        *(section(f"{name}, by kind of question", kinds_table(r)) for name, r in summary.items()),
    ]
    (folder / f"{stem}_tables.md").write_text("\n\n".join(parts) + "\n")
    plot_memory(summary, header["ages"]).savefig(folder / f"{stem}.png", dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What does a stream still know of long ago?")
    add_checkpoint(parser)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--windows", type=int, default=STREAM_WINDOWS, help="of 2 s, in a stream")
    parser.add_argument("--slots", type=int, default=SLOTS, help="of a cache that forgets")
    parser.add_argument("--method", choices=list(STREAMING), default="omnizip")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of every answer"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of tables, curves")
    given = parser.parse_args(arguments)
    params = given.checkpoint
    ages = ages_within(given.windows * SPEC.seconds)
    setting = given.method, given.split, given.windows, given.slots
    stem = "memory" if given.method == "omnizip" else f"memory_{given.method}"
    file = given.results / f"{stem}_{given.split}.jsonl"
    lines = remember_to(file, params, given.streams, *setting, ages)
    summary = summarise(lines)
    write_tables(summary, about(params, *setting, ages), given.out, stem)
    print(ages_table(summary))


if __name__ == "__main__":
    main()
