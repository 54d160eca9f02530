"""A whole file of questions: clips are read ahead of the device, rows are appended as they come."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from omnizip_jax.evaluation.evaluator import Engine, Prepared
from omnizip_jax.evaluation.hardware import machine
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Results


def evaluate(
    engine: Engine,
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    *,
    checkpoint: str = "",
    one_by_one: bool = False,
    progress: bool = False,
) -> None:
    """Ask all questions that have no row yet, and append their rows.

    Stopped at any moment, it goes on from there the next time, and the rows are the same bytes. A
    clip that cannot be read gives rows with its error; delete them to try again.

    Args:
        out: the rows, ``NAME.jsonl``; ``NAME.run.json`` and ``NAME.times.jsonl`` lie beside it.
        checkpoint: where the weights lie, to be noted.
        one_by_one: do not decode and encode the next clip while this one is asked about: slower,
            but no stage disturbs the times of another.
        progress: show a bar with the time left.

    Raises:
        ValueError: ``out`` belongs to another run, or cannot be written; a method cannot follow a
            stream.
    """
    engine.check()
    with opened(engine, questions, out, checkpoint, progress) as (results, groups, bar):
        if groups:
            results.note({"session": machine() | {"one by one": one_by_one}})
        with contextlib.closing(_ahead(engine, groups, one_by_one)) as prepared:
            for group, clip in zip(groups, prepared, strict=True):
                for row, times in engine.answer(clip, group, results.done):
                    results.append(row, times)
                    bar.update()


@contextlib.contextmanager
def opened(
    engine: Engine,
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    checkpoint: str,
    progress: bool,
) -> Iterator[tuple[Results, list[list[Question]], tqdm]]:
    """A run's files, the clips that rows are missing of, and a bar that counts rows."""
    groups = by_clip(questions)
    keys = [key for group in groups for key in engine.keys(group)]
    run = {"checkpoint": checkpoint, **engine.describe()}
    with Results(out, run, questions, keys) as results:
        there = len(results.done.intersection(keys))
        left = [group for group in groups if not results.done.issuperset(engine.keys(group))]
        with tqdm(total=len(keys), initial=there, unit="question", disable=not progress) as bar:
            yield results, left, bar


def by_clip(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions about the same clip together, clips in the order of their first question."""
    groups: dict[tuple[str, float, float | None], list[Question]] = {}
    for question in questions:
        groups.setdefault(question.clip, []).append(question)
    return list(groups.values())


def _ahead(
    engine: Engine, groups: Sequence[Sequence[Question]], one_by_one: bool
) -> Generator[Prepared]:
    """Each group's clip; the next one is made while this one is in use."""
    if one_by_one:
        yield from map(engine.prepare, groups)
        return
    with ThreadPoolExecutor(1, "clips") as thread:
        following = None
        for group in [*groups, None]:
            ready, following = following, group and thread.submit(engine.prepare, group)
            if ready is not None:
                yield ready.result()
