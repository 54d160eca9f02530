"""Questions about videos as they are kept in a file: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = (
    "method",
    "seed",
    "reply",
    "correct",
    "tokens",
    "cost",
    "error",
)  # columns of the results
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHOWN = 10  # bad lines that an error names

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])\s*[.):]")


class BadQuestions(ValueError):
    """Lines of a file that cannot be asked; names all of them."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a video.

    Attributes:
        id: tells it from the others of its file.
        video: path or URL, as a reader of files takes it.
        text: the question in words.
        options: what there is to choose from; () for a free answer.
        answer: the letter of the right option, or the words of a free answer; None if unknown.
        start, end: only this part of the video, seconds.
        columns: the line as it stands, to be carried into the results.
    """

    id: str
    video: str
    text: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    start: float = 0.0
    end: float | None = None
    columns: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def clip(self) -> tuple[str, float, float | None]:
        """What questions share that are asked about the same part of the same video."""
        return self.video, self.start, self.end

    @property
    def choices(self) -> tuple[str, ...]:
        """The options, each with its letter in front."""
        found = [_LETTERED.match(option) for option in self.options]
        if [match and match[1] for match in found] == list(LETTERS[: len(self.options)]):
            return self.options
        pairs = zip(LETTERS, self.options, strict=False)
        return tuple(f"{letter}. {option}" for letter, option in pairs)


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """All questions of a file, in its order; paths of videos count from where the file lies.

    Raises:
        BadQuestions: lines that are not JSON objects, lack an id, a video or a question, have
            options without an answer, an id twice, or a column that belongs to the results. A
            missing video is not looked for.
        OSError: the file cannot be read.
    """
    path = Path(path)
    out, problems = [], []
    first: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                question = parse_question(_decoded(line), path.parent)
                if question.id in first:
                    raise ValueError(f"the id {question.id!r} is that of line {first[question.id]}")
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")
            else:
                first[question.id] = number
                out.append(question)
    if problems:
        more = len(problems) - SHOWN
        shown = problems[:SHOWN] + ([f"and {more} lines more"] if more > 0 else [])
        raise BadQuestions("\n".join(shown))
    if not out:
        raise BadQuestions(f"{path}: no question in it; write one JSON object a line")
    return out


def write_questions(questions: Iterable[dict[str, Any]], path: str | os.PathLike[str]) -> int:
    """Write one line for each; returns how many there were."""
    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def parse_question(columns: dict[str, Any], folder: Path) -> Question:
    """The question of one line.

    Raises:
        ValueError: see ``read_questions``.
    """
    taken = sorted(set(columns) & set(RESULTS))
    if taken:
        raise ValueError(f"the columns {', '.join(taken)} belong to the results: rename them")
    for name in ("video", "question"):
        if not isinstance(columns.get(name), str) or not columns[name].strip():
            raise ValueError(f"{name!r} must be a text, got {columns.get(name)!r}")
    name = columns.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise ValueError(f"'id' must be a text or a whole number, got {name!r}")
    options = _options(columns.get("options"))
    start = _seconds("start", columns.get("start"))
    end = _seconds("end", columns.get("end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"'end' must lie behind 'start', got {end:g} and {start or 0.0:g}")
    return Question(
        id=str(name),
        video=_source(columns["video"], folder),
        text=columns["question"],
        options=options,
        answer=_answer(columns.get("answer"), options),
        start=start or 0.0,
        end=end,
        columns=columns,
    )


def is_remote(video: str) -> bool:
    """Whether it is a URL, not a path."""
    return _URL.match(video) is not None


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        columns = json.loads(line)
    except ValueError as error:
        raise ValueError(f"unreadable ({error})") from error
    if not isinstance(columns, dict):
        raise ValueError(f"expected a JSON object, got {type(columns).__name__}")
    return columns


def _source(video: str, folder: Path) -> str:
    if is_remote(video) or video.startswith("~"):
        return video
    return str(folder / video)  # an absolute path stays as it is


def _options(options: Any) -> tuple[str, ...]:
    if options is None:
        return ()
    if (
        not isinstance(options, list)
        or not all(isinstance(option, str) for option in options)
        or not 2 <= len(options) <= len(LETTERS)
    ):
        raise ValueError(f"'options' must be a list of 2 to 26 texts, got {options!r}")
    return tuple(options)


def _answer(answer: Any, options: tuple[str, ...]) -> str | None:
    """The letter of an option, or the words of a free answer."""
    if answer is None and not options:
        return None
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"options without an answer: 'answer' must be a text, got {answer!r}")
    if not options:
        return answer
    letters = LETTERS[: len(options)]
    letter = answer.strip().upper()
    if len(letter) == 1 and letter in letters:
        return letter
    if options.count(answer) == 1:
        return letters[options.index(answer)]
    raise ValueError(
        f"'answer' must be a letter from A to {letters[-1]} or one of the options, got {answer!r}"
    )


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name!r} must be seconds from the start of the video, got {value!r}")
    if value < 0:
        raise ValueError(f"{name!r} must be seconds from the start of the video, got {value!r}")
    return float(value)
