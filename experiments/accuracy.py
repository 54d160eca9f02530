"""``python -m experiments.accuracy``: accuracy of every compression method on test clips.

Every method answers the same questions about the same test clips, and is compared with all tokens
pair by pair. A run that was stopped goes on where it was; a method that is new in ``rows.py`` is
measured alone. At the end come tables and curves of all that the folder of results holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.accuracy_page import write_tables
from experiments.accuracy_questions import SURVEYS, Survey, clips_together
from experiments.accuracy_results import Answered, Measurement, Results, about
from experiments.accuracy_tables import Summary, short_table, summarise
from experiments.altered_inputs import Readings, Row
from experiments.batched_answers import Asked, answers, encode, prepare
from experiments.commands import add_checkpoint
from experiments.measured_methods import FULL, rows_of, seeds_of
from experiments.training_batches import cut
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.synthetic_clips import Split

# Every row has programs of its own for every length of clips, each of them takes hundreds of memory
# mappings, and a process may have 65,530 of these.
ROWS_TOGETHER = 48


def measure(
    params: Params,
    rows: Mapping[str, Row],
    survey: Survey,
    clips: Iterable[int],
    split: Split = "test",
    progress: bool = True,
    missing: Callable[[str, Sequence[int]], Sequence[int]] = lambda _, clips: clips,
) -> Iterator[list[Answered]]:
    """Ask about clips, a block after the other, and every row of a group about each block.

    Args:
        clips: their seeds.
        missing: of a block, the clips that a row has to be asked about; all by default.

    Yields:
        What a row answered about the clips of a block that were missing.
    """
    blocks, names = list(survey.blocks(list(clips))), list(rows)
    for start in range(0, len(names), ROWS_TOGETHER):
        if start:
            jax.clear_caches()
        group = {name: rows[name] for name in names[start : start + ROWS_TOGETHER]}
        desc = f"{survey.difficulty}, rows {start + 1} to {start + len(group)} of {len(names)}"
        total = sum(map(len, blocks))
        with tqdm(total=total, desc=desc, unit="clip", disable=not progress) as bar:
            yield from _ask_group(params, group, survey, blocks, split, missing, bar)


def _ask_group(
    params: Params,
    rows: Mapping[str, Row],
    survey: Survey,
    blocks: Sequence[list[int]],
    split: Split,
    missing: Callable[[str, Sequence[int]], Sequence[int]],
    bar: tqdm,
) -> Iterator[list[Answered]]:
    length = 0
    for seeds in blocks:
        wanted = {name: left for name in rows if (left := missing(name, seeds))}
        if wanted:
            if length not in (0, survey.windows(seeds[0])):
                jax.clear_caches()  # other shapes from here on
            length = survey.windows(seeds[0])
            asking = {name: rows[name] for name in wanted}
            for answered in _ask_block(params, asking, survey, seeds, split):
                left = wanted[answered[0].row]
                yield [one for one in answered if one.clip in left]
        bar.update(len(seeds))


def _ask_block(
    params: Params, rows: Mapping[str, Row], survey: Survey, seeds: Sequence[int], split: Split
) -> Iterator[list[Answered]]:
    # A short last block is filled up, so that every block runs the same programs.
    together = clips_together(survey.windows(seeds[0]))
    padded = [*seeds, *[seeds[-1]] * (together - len(seeds))]
    clips = [survey.clip(seed, split) for seed in padded]
    asked_of = [survey.plot(seed, split)[1] for seed in padded]
    texts = [[question.text for question in questions] for questions in asked_of]
    truth = np.array(
        [[params.tokenizer.encode(q.answer)[0] for q in questions] for questions in asked_of]
    )
    wants = frozenset[str]().union(*(row.method.wants for row in rows.values()))
    asked = prepare(params, [cut(clip) for clip in clips], texts, wants)
    readings = Readings(
        asked.clips.windows,
        clips,
        lambda: [survey.clip(survey.other(seed), split) for seed in padded],
        lambda windows: encode(params, windows, wants),
    )
    for name, row in rows.items():
        about = Asked(asked.clips.replace(windows=readings.of(row)), asked.questions)
        count = seeds_of(row.method)
        rounds = [
            answers(params, about, row.method, [seed * count + i for seed in padded])
            for i in range(count)
        ]
        right = np.stack([said.tokens == truth for said in rounds], axis=1).astype(int)
        kept = np.sum([said.kept for said in rounds], axis=0)
        yield [
            Answered(name, seed, ["".join(map(str, line)) for line in right[i]], kept[i].tolist())
            for i, seed in enumerate(seeds)
        ]


def measure_to(
    results: Results,
    params: Params,
    rows: Mapping[str, Row],
    survey: Survey,
    clips: int,
    split: Split = "test",
) -> None:
    """``measure`` the first ``clips`` clips, going on from what the results hold."""

    def missing(name: str, seeds: Sequence[int]) -> Sequence[int]:
        return results.missing(name, rows[name], seeds)

    for answered in measure(params, rows, survey, range(clips), split, missing=missing):
        name = answered[0].row
        results.add(name, rows[name], answered)


def measured(
    results: Results,
    params: Params,
    rows: Mapping[str, Row],
    survey: Survey,
    clips: int,
    split: Split = "test",
) -> Measurement | None:
    """The rows that were asked about all of the first ``clips`` clips; None without all tokens."""
    seeds = range(clips)
    whole = [name for name, row in rows.items() if not results.missing(name, row, seeds)]
    if FULL not in whole:
        return None
    answered = (one for name in whole for one in results.of(name, rows[name], seeds))
    return Measurement.of(answered, params, survey, split)


def main() -> None:
    parser = argparse.ArgumentParser(description="What compression costs, on test clips.")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, help="of each difficulty; by default as in survey.py")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(SURVEYS), help="measure only this one")
    parser.add_argument(
        "--only", metavar="PREFIX", nargs="+", help="of the names of rows; all tokens come along"
    )
    parser.add_argument(
        "--again", action="store_true", help="forget what the rows of --only answered before"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of every answer"
    )
    parser.add_argument("--tables", type=Path, help="folder of tables and curves; the same folder")
    arguments = parser.parse_args()
    if arguments.again and not arguments.only:
        parser.error("--again needs --only: to measure everything anew, give another folder")
    params = arguments.checkpoint
    summary: dict[str, Summary] = {}
    for name, survey in SURVEYS.items():
        rows = rows_of(survey, params.config.text.layers)
        clips = arguments.clips or survey.clips
        file = arguments.results / f"{name}.jsonl"
        asking = arguments.difficulty in (None, name)
        if not asking and not file.exists():
            continue
        results = Results(file, about(params, survey, arguments.split))
        if asking:
            chosen = _chosen(rows, arguments.only)
            if arguments.again:
                results.forget(chosen)
            chosen = {FULL: rows[FULL]} | chosen
            measure_to(results, params, chosen, survey, clips, arguments.split)
        if found := measured(results, params, rows, survey, clips, arguments.split):
            methods = {n: row.method for n, row in rows.items()}
            summary[name] = summarise(found, methods, params.config)
    write_tables(summary, arguments.tables or arguments.results)
    print(short_table(summary))


def _chosen(rows: Mapping[str, Row], prefixes: Sequence[str] | None) -> dict[str, Row]:
    begin = tuple(prefixes) if prefixes else ("",)
    return {name: row for name, row in rows.items() if name.startswith(begin)}


if __name__ == "__main__":
    main()
