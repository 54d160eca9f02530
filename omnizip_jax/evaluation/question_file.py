"""Questions about videos, from a file with one JSON object a line, or one prompt for all videos."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

RESULT_COLUMNS = ("method", "seed", "reply", "read", "correct", "tokens", "cost", "error")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VIDEO_LIST = ".txt"  # suffix of a list of videos
VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg")
VIDEO_SUFFIXES += (".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")  # searched for in folders
MAX_REPORTED = 10  # problems that an error message lists

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LETTERED = re.compile(r"\(?([A-Z])\s*[.):]")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a video.

    Attributes:
        id: unique within its file.
        video: path or URL.
        text: the question.
        options: the choices; () for a free answer.
        answer: the letter of the right option, or the text of a free answer; None if unknown.
        start, end: the part of the video that is read, seconds.
        columns: the line as it was read; copied into the results.
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
        """The part of a video; questions with the same clip share its encoding."""
        return self.video, self.start, self.end


def lettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options, each with its letter in front; unchanged if they have them."""
    found = [_LETTERED.match(option) for option in options]
    if [match and match[1] for match in found] == list(LETTERS[: len(options)]):
        return tuple(options)
    return tuple(f"{letter}. {each}" for letter, each in zip(LETTERS, options, strict=False))


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the letters that ``lettered`` adds."""
    if lettered(options) != tuple(options):
        return tuple(options)
    return tuple(_LETTERED.sub("", option, count=1).strip() for option in options)


def normalised(text: str) -> str:
    """The words in lower case, separated by single spaces, without punctuation around them."""
    words = " ".join(text.casefold().split())
    return words.lstrip("\"'([{").rstrip(" .,:;!?\"')]}") or words


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """All questions of a file, in order; relative paths of videos start at the file's folder.

    Raises:
        ValueError: lines that are not JSON objects, lack an id, a video or a question, have
            options without an answer, a repeated id, or a column that belongs to the results.
            Whether a video exists is not checked.
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
                question = parse_question(decode_line(line), path.parent)
                if question.id in first:
                    raise ValueError(f"the id {question.id!r} is that of line {first[question.id]}")
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")
            else:
                first[question.id] = number
                out.append(question)
    if problems:
        raise ValueError(_listed(problems, " lines"))
    if not out:
        raise ValueError(f"{path}: no question in it; write one JSON object a line")
    return out


def write_questions(questions: Iterable[dict[str, Any]], path: str | os.PathLike[str]) -> int:
    """Write one line for each question; returns the number of lines."""
    lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def parse_question(columns: dict[str, Any], folder: Path) -> Question:
    """The question of one line; ``ValueError`` as for ``read_questions``."""
    taken = sorted(set(columns) & set(RESULT_COLUMNS))
    if taken:
        raise ValueError(f"the columns {', '.join(taken)} belong to the results: rename them")
    for name in ("video", "question"):
        _expect(name, columns.get(name), "a text", _is_text(columns.get(name)))
    name, options = columns.get("id"), columns.get("options")
    valid = isinstance(name, str | int) and not isinstance(name, bool) and name != ""
    _expect("id", name, "a text or a whole number", valid)
    if options is not None:
        valid = isinstance(options, list) and all(isinstance(each, str) for each in options)
        valid = valid and 2 <= len(options) <= len(LETTERS)
        _expect("options", options, "a list of 2 to 26 texts", valid)
    options = tuple(options or ())
    start, end = (_seconds(name, columns.get(name)) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"'end' must be after 'start', got {end:g} and {start or 0.0:g}")
    video = columns["video"]
    return Question(
        id=str(name),
        video=video if is_remote(video) or video.startswith("~") else str(folder / video),
        text=columns["question"],
        options=options,
        answer=_answer(columns.get("answer"), options),
        start=start or 0.0,
        end=end,
        columns=columns,
    )


def decode_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; ``ValueError`` if it has none."""
    try:
        columns = json.loads(line)
        if not isinstance(columns, dict):
            raise ValueError(f"expected a JSON object, got {type(columns).__name__}")
    except ValueError as error:
        raise ValueError(f"unreadable ({error})") from error
    return columns


def is_remote(video: str) -> bool:
    """Whether it is a URL, not a path."""
    return _URL.match(video) is not None


def caption_questions(sources: Sequence[str], prompt: str) -> list[Question]:
    """The same question about each video; its id is the video's path.

    Args:
        sources: videos, URLs, folders that are searched recursively, and text files ``NAME.txt``
            with a path or URL a line, relative to the file's folder.
        prompt: the question.

    Raises:
        ValueError: a source that does not exist, a folder without videos, a list that is empty or
            cannot be read, a name that is not UTF-8, or a video named twice. Whether the videos of
            a list exist is not checked.
    """
    first: dict[str, str] = {}
    problems = []
    sources = [sources] if isinstance(sources, str) else sources
    for video, place in (found for source in sources for found in _videos(source)):
        if video in first:
            problems.append(f"{place}: {video} is named a second time, first by {first[video]}")
        elif video.encode(errors="replace").decode() != video:  # other bytes are surrogates
            problems.append(f"{place}: the name {video!r} is not UTF-8: rename the file")
        first.setdefault(video, place)
    if problems:
        raise ValueError(_listed(problems))
    return [
        parse_question({"id": video, "video": video, "question": prompt}, Path()) for video in first
    ]


def _videos(source: str) -> Iterator[tuple[str, str]]:
    """The videos of a source, each with the place that names it."""
    path = Path(source).expanduser()
    if is_remote(source):
        yield source, "the command line"
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
        found = [file for file in files if not file.name.startswith(".") and file.is_file()]
        if not found:
            raise ValueError(f"{source}: no video in this folder ({', '.join(VIDEO_SUFFIXES)})")
        yield from ((str(file), source) for file in found)
    elif not path.is_file():
        raise ValueError(f"{source}: no such video, list or folder")
    elif path.suffix.lower() == VIDEO_LIST:
        yield from _videos_of_list(path)
    else:
        yield str(path), "the command line"


def _videos_of_list(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the list of videos cannot be read ({error})") from error
    named = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    if not named:
        raise ValueError(f"{path}: names no video: write a path or URL a line")
    for number, line in named.items():
        video = line if is_remote(line) else str(path.parent / Path(line).expanduser())
        yield video, f"{path}, line {number}"


def _listed(problems: Sequence[str], unit: str = "") -> str:
    """The first problems, a line each, and the number of the others."""
    more = len(problems) - MAX_REPORTED
    return "\n".join([*problems[:MAX_REPORTED], *[f"and {more} more{unit}"] * (more > 0)])


def _expect(name: str, value: Any, expected: str, valid: bool) -> None:
    if not valid:
        raise ValueError(f"{name!r} must be {expected}, got {value!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _answer(answer: Any, options: tuple[str, ...]) -> str | None:
    """The letter of an option, or the text of a free answer."""
    if answer is None and not options:
        return None
    expected = "a text" + " (there are options)" * bool(options)
    _expect("answer", answer, expected, _is_text(answer))
    if not options:
        return answer
    letters, choices, given = LETTERS[: len(options)], lettered(options), str(answer).strip()
    texts = unlettered(options)
    if given in choices:
        return letters[choices.index(given)]
    if given not in texts and (match := re.fullmatch(r"\(([A-Za-z])\)", given)):
        given, texts = match[1], ()  # as ``as_letter`` writes it
    named = [letters[n] for n, text in enumerate(texts) if normalised(text) == normalised(given)]
    if (letter := given.upper()) in set(letters):
        if other := [each for each in named if each != letter]:
            raise ValueError(
                f"'answer' {given!r} is the letter of {choices[letters.index(letter)]!r} and the "
                f"text of another option: write '({given})' for the letter, or "
                f"{choices[letters.index(other[0])]!r} for the text"
            )
        return letter
    expected = f"a letter from A to {letters[-1]} or one of the options"
    _expect("answer", answer, expected, len(named) == 1)
    return named[0]


def as_letter(letter: str, options: Sequence[str]) -> str:
    """An ``answer`` that is a letter, in brackets if it is the text of an option as well."""
    texts = [normalised(text) for text in unlettered(options)]
    return f"({letter})" if len(letter) == 1 and normalised(letter) in texts else letter


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    valid = valid and math.isfinite(value) and value >= 0
    _expect(name, value, "seconds from the start of the video", valid)
    return float(value)
