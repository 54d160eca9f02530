"""``python -m experiments.streaming_recall``: accuracy of a stream about objects of the past.

Streams much longer than the cache are fed window by window. At the end questions are asked about
objects 2 s, 30 s, 2 min and 10 min ago, for each retention policy and for a cache without eviction.
A stopped run resumes.
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

from experiments.clip_inputs import clip_to_windows
from experiments.command_line import add_checkpoint, append, resume
from experiments.streaming_recall_clips import AGES, STREAM_WINDOWS, Ages, ages_within, make_stream
from experiments.streaming_recall_tables import (
    UNBOUNDED,
    Summary,
    ages_table,
    differences_table,
    kinds_table,
    plot_memory,
    row_name,
    summarise,
)
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.compression.per_modality import PerModality
from omnizip_jax.evaluation.clip_evaluator import StreamSettings
from omnizip_jax.evaluation.markdown_tables import section
from omnizip_jax.inference.context import Context, Memory
from omnizip_jax.inference.generation import ask
from omnizip_jax.inference.streaming import feed
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.clip_questions import Question
from omnizip_jax.testbed.synthetic_clips import SPEC, Split
from omnizip_jax.types import Window

SLOTS = 1280  # of a cache with eviction: 42 windows at 25 %
SHARES = (0.25, 0.45)
UNBOUNDED_SHARE = 0.25
TEXT_SLOTS = 64  # a question and one token of an answer
PROMPT = 512  # slots for the prompt, a window, a question

# Streaming methods with a share, by name.
STREAMING = {
    name: kind for name, kind in METHODS.items() if issubclass(kind, PerModality) and kind().streams
}


class Row(NamedTuple):
    """A retention policy at a kept share."""

    memory: Memory
    keep: float
    slots: int
    bounded: bool = True

    @property
    def name(self) -> str:
        return row_name(self.memory if self.bounded else UNBOUNDED, self.keep)


def rows_of(windows: int, slots: int) -> list[Row]:
    """Every retention policy at every share, and a cache that holds a whole stream."""
    rows = [Row(memory, keep, slots) for memory in typing.get_args(Memory) for keep in SHARES]
    # A stream may keep a little more than its share.
    most = 1.1 * UNBOUNDED_SHARE * windows * (SPEC.audio_slots + SPEC.video_slots)
    return [*rows, Row("recent", UNBOUNDED_SHARE, math.ceil(most) + PROMPT, bounded=False)]


def feed_stream(
    params: Params,
    windows: Window,
    method: Method,
    row: Row,
    seed: int = 0,
    on_window: Callable[[], object] = lambda: None,
) -> Context:
    """Feed a stream window by window.

    Args:
        windows: leading axis W on every leaf.
        seed: of random methods.
        on_window: called after each window.

    Raises:
        ValueError: the unbounded cache evicted tokens.
    """
    stream_settings = StreamSettings(memory=row.memory, capacity=row.slots)
    state = stream_settings.init(params, method, SPEC, TEXT_SLOTS, seed=seed)
    for number in range(len(windows.mel_length)):
        state = feed(params, state, jax.tree.map(lambda x, at=number: x[at], windows))
        on_window()
    if not row.bounded and int(state.cache.length) < int(np.sum(state.kept)):
        raise ValueError(
            f"{method} keeps more than {row.keep:.0%}: {row.slots} slots are too few for all tokens"
        )
    return state


def question_by_question(
    params: Params, state: Context, questions: Sequence[tuple[str, Question]]
) -> Iterator[tuple[str, str, int]]:
    """Age, kind, and whether the first token of the answer is right, for every question."""
    for age, question in questions:
        answer, _ = ask(params, state, question.text, max_new_tokens=1)
        truth = params.tokenizer.encode(question.answer)[0]
        yield age, question.kind, int(answer.token_ids[0] == truth)


def results_header(
    params: Params, name: str, split: Split, windows: int, slots: int, ages: Ages
) -> dict:
    """Settings of a results file, its first line."""
    return {
        "weights": params.fingerprint,
        "split": split,
        "windows": windows,
        "slots": slots,
        "ages": {age: list(reach) for age, reach in ages.items()},
        "methods": [repr(STREAMING[name](keep=keep)) for keep in SHARES],
    }


def measure_to(
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
    """Measure every row on the first ``streams`` streams, except those in the file.

    A line of the file has the seed of the stream, the row, the kept share, the slots in use at the
    end, and for every answer the age, the kind and whether it is right.

    Raises:
        ValueError: the file has other settings, or no age fits in a stream.
    """
    ages = ages_within(windows * SPEC.seconds, ages)
    done = resume(file, results_header(params, name, split, windows, slots, ages))
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
            clip_windows = clip_to_windows(clip)
            for row in own:
                bar.set_description(f"stream {stream}, {row.name}")
                method = STREAMING[name](keep=row.keep)
                state = feed_stream(params, clip_windows, method, row, stream, bar.update)
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
    """Write the summary, tables and curves."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"measured": header, "rows": summary}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    minutes = header["windows"] * SPEC.seconds / 60
    parts = [
        f"# Stream memory: complete tables\n\nStreams of {minutes:.3g} minutes "
        f"({header['split']} seeds), window by window into a cache of {header['slots']:,} slots; "
        "accuracy at the end of the stream by age of the object. In brackets: 95 % intervals over "
        f"streams.\n\n{ages_table(summary)}",
        section("Minus an unbounded cache", differences_table(summary)),
        *(section(f"{name}, by kind of question", kinds_table(r)) for name, r in summary.items()),
    ]
    (folder / f"{stem}_tables.md").write_text("\n\n".join(parts) + "\n")
    plot_memory(summary, header["ages"]).savefig(folder / f"{stem}.png", dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy of streams about objects of the past.")
    add_checkpoint(parser)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--windows", type=int, default=STREAM_WINDOWS, help="of a stream, 2 s each")
    parser.add_argument("--slots", type=int, default=SLOTS, help="of a cache with eviction")
    parser.add_argument("--method", choices=list(STREAMING), default="omnizip")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the answers"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of tables and curves"
    )
    given = parser.parse_args(arguments)
    params = given.checkpoint
    ages = ages_within(given.windows * SPEC.seconds)
    setting = given.method, given.split, given.windows, given.slots
    stem = "memory" if given.method == "omnizip" else f"memory_{given.method}"
    file = given.results / f"{stem}_{given.split}.jsonl"
    lines = measure_to(file, params, given.streams, *setting, ages)
    summary = summarise(lines)
    write_tables(summary, results_header(params, *setting, ages), given.out, stem)
    print(ages_table(summary))


if __name__ == "__main__":
    main()
