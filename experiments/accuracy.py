"""``python -m experiments.accuracy``: accuracy of every compression method on test clips.

Every method answers the same questions about the same clips, so differences from all tokens are
paired. A stopped run resumes; a row added to ``measured_methods.py`` is measured alone. At the end
tables and curves are made from all stored answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.accuracy_questions import QUESTION_SETS, QuestionSet, block_clips
from experiments.accuracy_results import ClipAnswers, Measurement, Results, results_header
from experiments.accuracy_tables import Summary, short_table, summarise, write_tables
from experiments.batched_answers import Asked, answers, encode, prepare
from experiments.clip_inputs import BlockInputs, Row, clip_to_windows
from experiments.command_line import add_checkpoint
from experiments.measured_methods import FULL, rows_of, seeds_of
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.synthetic_clips import Split

# Every row compiles programs for every length of clips, each takes hundreds of memory mappings, and
# a process may have 65,530 of these.
ROWS_TOGETHER = 48


def measure(
    params: Params,
    rows: Mapping[str, Row],
    questions: QuestionSet,
    clips: Iterable[int],
    split: Split = "test",
    progress: bool = True,
    missing: Callable[[str, Sequence[int]], Sequence[int]] = lambda _, clips: clips,
) -> Iterator[list[ClipAnswers]]:
    """Answer the questions about clips with every row, block by block.

    Args:
        clips: their seeds.
        missing: a row's name and the clips of a block to the clips to measure; all by default.

    Yields:
        Answers of one row about the missing clips of a block.
    """
    blocks, names = list(questions.blocks(list(clips))), list(rows)
    for start in range(0, len(names), ROWS_TOGETHER):
        if start:
            jax.clear_caches()
        group = names[start : start + ROWS_TOGETHER]
        desc = f"{questions.difficulty}, rows {start + 1} to {start + len(group)} of {len(names)}"
        length, total = 0, sum(map(len, blocks))
        with tqdm(total=total, desc=desc, unit="clip", disable=not progress) as bar:
            for seeds in blocks:
                wanted = {name: left for name in group if (left := missing(name, seeds))}
                if wanted:
                    if length not in (0, questions.windows(seeds[0])):
                        jax.clear_caches()  # programs of another length are not needed again
                    length = questions.windows(seeds[0])
                    chosen = {name: rows[name] for name in wanted}
                    for answered in _answer_block(params, chosen, questions, seeds, split):
                        yield [one for one in answered if one.clip in wanted[one.row]]
                bar.update(len(seeds))


def _answer_block(
    params: Params,
    rows: Mapping[str, Row],
    questions: QuestionSet,
    seeds: Sequence[int],
    split: Split,
) -> Iterator[list[ClipAnswers]]:
    # A short last block is padded, so that every block runs the same programs.
    padded = [*seeds, *[seeds[-1]] * (block_clips(questions.windows(seeds[0])) - len(seeds))]
    clips = [questions.clip(seed, split) for seed in padded]
    asked_of = [questions.questions(seed, split) for seed in padded]
    texts = [[question.text for question in asked] for asked in asked_of]
    truth = np.array([[params.tokenizer.encode(q.answer)[0] for q in asked] for asked in asked_of])
    wants = frozenset[str]().union(*(row.method.wants for row in rows.values()))
    prepared = prepare(params, [clip_to_windows(clip) for clip in clips], texts, wants)
    inputs = BlockInputs(
        prepared.clips.windows,
        clips,
        lambda: [questions.clip(questions.other_seed(seed), split) for seed in padded],
        lambda windows: encode(params, windows, wants),
    )
    for name, row in rows.items():
        block = Asked(prepared.clips.replace(windows=inputs.of(row)), prepared.questions)
        count = seeds_of(row.method)
        rounds = [
            answers(params, block, row.method, [seed * count + i for seed in padded])
            for i in range(count)
        ]
        right = np.stack([one.tokens == truth for one in rounds], axis=1).astype(int)
        kept = np.sum([one.kept for one in rounds], axis=0)
        yield [
            ClipAnswers(
                name, seed, ["".join(map(str, line)) for line in right[i]], kept[i].tolist()
            )
            for i, seed in enumerate(seeds)
        ]


def measure_to(
    results: Results,
    params: Params,
    rows: Mapping[str, Row],
    questions: QuestionSet,
    clips: int,
    split: Split = "test",
) -> None:
    """Measure the first ``clips`` clips, except those that the results hold."""

    def missing(name: str, seeds: Sequence[int]) -> Sequence[int]:
        return results.missing(name, rows[name], seeds)

    for answered in measure(params, rows, questions, range(clips), split, missing=missing):
        name = answered[0].row
        results.add(name, rows[name], answered)


def measured(
    results: Results,
    params: Params,
    rows: Mapping[str, Row],
    questions: QuestionSet,
    clips: int,
    split: Split = "test",
) -> Measurement | None:
    """Rows with answers about all of the first ``clips`` clips; None without all tokens."""
    seeds = range(clips)
    complete = [name for name, row in rows.items() if not results.missing(name, row, seeds)]
    if FULL not in complete:
        return None
    answered = (one for name in complete for one in results.of(name, rows[name], seeds))
    return Measurement.of(answered, params, questions, split)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of compression methods on test clips.")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, help="of each difficulty; default: QUESTION_SETS")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(QUESTION_SETS), help="measure only this one")
    parser.add_argument(
        "--only", metavar="PREFIX", nargs="+", help="of names of rows; all tokens are added"
    )
    parser.add_argument(
        "--again", action="store_true", help="discard the stored answers of the rows of --only"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the answers"
    )
    parser.add_argument("--tables", type=Path, help="folder of tables and curves; default: results")
    arguments = parser.parse_args()
    if arguments.again and not arguments.only:
        parser.error("--again needs --only: to measure everything again, give another --results")
    params = arguments.checkpoint
    summary: dict[str, Summary] = {}
    for name, questions in QUESTION_SETS.items():
        rows = rows_of(questions, params.config.text.layers)
        clips = arguments.clips or questions.clips
        file = arguments.results / f"{name}.jsonl"
        selected = arguments.difficulty in (None, name)
        if not selected and not file.exists():
            continue
        results = Results(file, results_header(params, questions, arguments.split))
        if selected:
            prefixes = tuple(arguments.only or ("",))
            chosen = {row: rows[row] for row in rows if row.startswith(prefixes)}
            if arguments.again:
                results.discard(chosen)
            chosen = {FULL: rows[FULL]} | chosen
            measure_to(results, params, chosen, questions, clips, arguments.split)
        if found := measured(results, params, rows, questions, clips, arguments.split):
            methods = {n: row.method for n, row in rows.items()}
            summary[name] = summarise(found, methods, params.config)
    write_tables(summary, arguments.tables or arguments.results)
    print(short_table(summary))


if __name__ == "__main__":
    main()
