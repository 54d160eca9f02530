"""Answers on disk, row by row and clip by clip, and the arrays that tables are made of.

A file of results belongs to a difficulty. Its first line says with what it was measured; each of
the others holds what a row answered about a block of clips. A stopped run loses at most a block of
one row, and a new row costs its own answers alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from experiments.accuracy_questions import Survey
from experiments.altered_inputs import Row
from experiments.batched_answers import text_tokens
from experiments.resumable import append, resume
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.synthetic_clips import Split


class Answered(NamedTuple):
    """What a row answered about one clip.

    Attributes:
        row: its name.
        clip: its seed.
        right: a string of 0 and 1 for each seed of the method: whether each answer was right.
        kept: audio and video tokens that entered the decoder, and that went on after each stage
            inside it, summed over the seeds.
    """

    row: str
    clip: int
    right: list[str]
    kept: list[list[int]]


class Results:
    """The answers in a file, which is made if it is not there.

    Args:
        header: what was measured: the first line of the file.

    Raises:
        ValueError: the file was measured with something else, or is no file of results.
    """

    def __init__(self, file: Path, header: dict[str, Any]):
        self._file = file
        # By the name of a row, and by what it was: one that has changed is another one.
        self._answers: dict[tuple[str, str], dict[int, Answered]] = {}
        for line in resume(file, header):
            self._remember(**line)

    def missing(self, name: str, row: Row, clips: Iterable[int]) -> list[int]:
        """The clips of these that the row was not asked about."""
        there = self._answers.get((name, repr(row)), {})
        return [clip for clip in clips if clip not in there]

    def add(self, name: str, row: Row, answered: Sequence[Answered]) -> None:
        """Write down what a row answered about some clips."""
        line = {
            "row": name,
            "reads": repr(row),
            "clips": [one.clip for one in answered],
            "right": [one.right for one in answered],
            "kept": [one.kept for one in answered],
        }
        append(self._file, line)
        self._remember(**line)

    def of(self, name: str, row: Row, clips: Iterable[int]) -> list[Answered]:
        """What a row answered about clips that it was asked about."""
        return [self._answers[name, repr(row)][clip] for clip in clips]

    def forget(self, names: Iterable[str]) -> None:
        """Take all answers of some rows out of the file: their code has changed."""
        gone = set(names)
        self._answers = {key: rows for key, rows in self._answers.items() if key[0] not in gone}
        header, *lines = self._file.read_text().splitlines(keepends=True)
        left = (line for line in lines if json.loads(line)["row"] not in gone)
        partial = self._file.with_suffix(".partial")  # a stop while writing must not cost the rest
        partial.write_text(header + "".join(left))
        partial.replace(self._file)

    def _remember(self, row: str, reads: str, clips: list, right: list, kept: list) -> None:
        rows = self._answers.setdefault((row, reads), {})
        rows |= {c: Answered(row, c, *rest) for c, *rest in zip(clips, right, kept, strict=True)}


def about(params: Params, survey: Survey, split: Split) -> dict[str, Any]:
    """What a file of results was measured with: its first line."""
    questions = survey.plot(0, split)[1]
    return {
        "weights": params.fingerprint,
        "difficulty": survey.difficulty,
        "split": split,
        "questions": [f"{question.text} {question.answer}" for question in questions],
    }


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What every row answered about the same clips.

    Attributes:
        right: of each row, whether the answer was right: [clips, seeds, questions].
        kept: of each row, mean audio and video tokens that entered the decoder, and that went on
            after each stage inside it.
        kinds, families: of the questions.
        windows: of the clips.
        text: tokens of text in a prompt, on average.
    """

    right: dict[str, Bool[np.ndarray, "clips _ questions"]]
    kept: dict[str, Float[np.ndarray, "clips _ 2"]]
    kinds: Shaped[np.ndarray, "clips questions"]
    families: Shaped[np.ndarray, "clips questions"]
    windows: Int[np.ndarray, " clips"]
    text: Float[np.ndarray, " clips"]

    @classmethod
    def of(
        cls, answered: Iterable[Answered], params: Params, survey: Survey, split: Split = "test"
    ) -> Measurement:
        """Arrays of answers; every row was asked about the same clips."""
        rows: dict[str, list[Answered]] = {}
        for one in answered:
            rows.setdefault(one.row, []).append(one)
        clips = sorted({one.clip for of_row in rows.values() for one in of_row})
        right, kept = {}, {}
        for name, of_row in rows.items():
            of_row = sorted(of_row, key=lambda one: one.clip)
            assert [one.clip for one in of_row] == clips, f"{name} was asked about other clips"
            right[name] = np.array([[list(seed) for seed in one.right] for one in of_row]) == "1"
            kept[name] = np.array([one.kept for one in of_row]) / right[name].shape[1]
        asked = [survey.plot(clip, split)[1] for clip in clips]
        texts = [[text_tokens(params, question.text) for question in of] for of in asked]
        return cls(
            right,
            kept,
            kinds=np.array([[question.kind for question in of] for of in asked]),
            families=np.array([[question.family for question in of] for of in asked]),
            windows=np.array([survey.windows(clip) for clip in clips]),
            text=np.array(texts).mean(1),
        )
