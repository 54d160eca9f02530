"""Answers of the accuracy measurement on disk, and as arrays.

A results file belongs to one difficulty. Its first line states the settings; every other line holds
the answers of one row about a block of clips.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from experiments.accuracy_questions import QuestionSet
from experiments.batched_answers import text_tokens
from experiments.clip_inputs import Row
from experiments.command_line import append, resume
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.synthetic_clips import Split


class ClipAnswers(NamedTuple):
    """Answers of a row about one clip.

    Attributes:
        row: its name.
        clip: its seed.
        right: for each seed of the method a string of 0 and 1, one digit per question.
        kept: audio and video tokens that entered the decoder, and that were left after each pruning
            stage inside it, summed over the seeds.
    """

    row: str
    clip: int
    right: list[str]
    kept: list[list[int]]


class Results:
    """Answers in a file, which is created if it does not exist.

    Args:
        header: settings, the first line of the file.

    Raises:
        ValueError: the file has another header or is not a results file.
    """

    def __init__(self, file: Path, header: dict[str, Any]):
        self._file = file
        # By name and configuration of a row: a row that has changed is measured again.
        self._answers: dict[tuple[str, str], dict[int, ClipAnswers]] = {}
        for line in resume(file, header):
            self._store(**line)

    def missing(self, name: str, row: Row, clips: Iterable[int]) -> list[int]:
        """The clips without answers of the row."""
        stored = self._answers.get((name, repr(row)), {})
        return [clip for clip in clips if clip not in stored]

    def add(self, name: str, row: Row, answered: Sequence[ClipAnswers]) -> None:
        """Append the answers of a row about some clips."""
        line = {
            "row": name,
            "reads": repr(row),
            "clips": [one.clip for one in answered],
            "right": [one.right for one in answered],
            "kept": [one.kept for one in answered],
        }
        append(self._file, line)
        self._store(**line)

    def of(self, name: str, row: Row, clips: Iterable[int]) -> list[ClipAnswers]:
        """Stored answers of a row about these clips."""
        return [self._answers[name, repr(row)][clip] for clip in clips]

    def discard(self, names: Iterable[str]) -> None:
        """Remove all answers of some rows from the file."""
        gone = set(names)
        self._answers = {key: rows for key, rows in self._answers.items() if key[0] not in gone}
        header, *lines = self._file.read_text().splitlines(keepends=True)
        left = (line for line in lines if json.loads(line)["row"] not in gone)
        partial = self._file.with_suffix(".partial")  # a stop while writing keeps the old file
        partial.write_text(header + "".join(left))
        partial.replace(self._file)

    def _store(self, row: str, reads: str, clips: list, right: list, kept: list) -> None:
        rows = self._answers.setdefault((row, reads), {})
        rows |= {c: ClipAnswers(row, c, *rest) for c, *rest in zip(clips, right, kept, strict=True)}


def results_header(params: Params, questions: QuestionSet, split: Split) -> dict[str, Any]:
    """Settings of a results file, its first line."""
    return {
        "weights": params.fingerprint,
        "difficulty": questions.difficulty,
        "split": split,
        "questions": [f"{q.text} {q.answer}" for q in questions.questions(0, split)],
    }


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Answers of every row about the same clips.

    Attributes:
        right: by row, whether each answer is right: [clips, seeds, questions].
        kept: by row, mean audio and video tokens that entered the decoder, and that were left after
            each pruning stage inside it.
        kinds, families: of the questions.
        windows: lengths of the clips.
        text: mean number of text tokens of a prompt.
    """

    right: dict[str, Bool[np.ndarray, "clips _ questions"]]
    kept: dict[str, Float[np.ndarray, "clips _ 2"]]
    kinds: Shaped[np.ndarray, "clips questions"]
    families: Shaped[np.ndarray, "clips questions"]
    windows: Int[np.ndarray, " clips"]
    text: Float[np.ndarray, " clips"]

    @classmethod
    def of(
        cls,
        answered: Iterable[ClipAnswers],
        params: Params,
        questions: QuestionSet,
        split: Split = "test",
    ) -> Measurement:
        """Arrays of the answers; every row must have the same clips."""
        rows: dict[str, list[ClipAnswers]] = {}
        for one in answered:
            rows.setdefault(one.row, []).append(one)
        clips = sorted({one.clip for of_row in rows.values() for one in of_row})
        right, kept = {}, {}
        for name, of_row in rows.items():
            of_row = sorted(of_row, key=lambda one: one.clip)
            assert [one.clip for one in of_row] == clips, f"{name} has answers about other clips"
            right[name] = np.array([[list(seed) for seed in one.right] for one in of_row]) == "1"
            kept[name] = np.array([one.kept for one in of_row]) / right[name].shape[1]
        asked = [questions.questions(clip, split) for clip in clips]
        texts = [[text_tokens(params, question.text) for question in of] for of in asked]
        return cls(
            right,
            kept,
            kinds=np.array([[question.kind for question in of] for of in asked]),
            families=np.array([[question.family for question in of] for of in asked]),
            windows=np.array([questions.windows(clip) for clip in clips]),
            text=np.array(texts).mean(1),
        )
