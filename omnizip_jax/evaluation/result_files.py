"""Files of a run: rows are appended as they are made, and an interrupted run is resumed.

``NAME.jsonl`` has the rows, in any order, identified by id, method and seed; ``NAME.run.json`` the
settings; ``NAME.times.jsonl`` seconds and memory, which differ between repetitions of a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.question_file import RESULT_COLUMNS, Question, decode_line

Key = tuple[str, str, int]  # id, method, seed
# The same weights may be stored elsewhere, and questions may be added.
NOT_COMPARED = {"checkpoint", "questions", "runs"}


class ResultFiles(contextlib.AbstractContextManager["ResultFiles"]):
    """The files of a run, locked while they are open. Use as a context manager.

    Args:
        path: of the rows, ``NAME.jsonl``; existing rows are kept.
        run: settings by name, as JSON.
        questions: all questions of the run.

    Attributes:
        done: keys of the existing rows.
        times: the file of times, to ``append`` lines to.

    Raises:
        ValueError: the files belong to another run, are not results, or are open in another
            process.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: dict[str, Any], questions: Sequence[Question]
    ):
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"{self.path}: results go to a file whose name ends in .jsonl")
        with contextlib.ExitStack() as stack:
            self._rows = _LineFile(self.path, stack)
            _check_run(self.path, run)
            self.done = _existing_keys(self.path, questions)
            self.times = _LineFile(self.path.with_suffix(".times.jsonl"), stack)
            for file in (self._rows, self.times):  # nothing has been changed before
                file.drop_partial_line()
            if run.get("questions", 0) > (before := read_run(self.path)).get("questions", 0):
                _write_run(self.path, before | {name: run[name] for name in ("questions", "runs")})
            self._stack = stack.pop_all()

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def append(self, row: dict[str, Any]) -> None:
        """Write a row; it is on the disk when this returns.

        Raises:
            ValueError: writing failed; existing lines are intact.
        """
        self._rows.append(row)
        self.done.add(key_of(row))


def key_of(row: dict[str, Any]) -> Key:
    """The key of a row within its run."""
    return str(row["id"]), row["method"], row["seed"]


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        ValueError: ``NAME.run.json`` is missing or unreadable.
    """
    path = Path(path).with_suffix(".run.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: the settings of the run cannot be read ({error}): give the .jsonl file that "
            "`omnizip evaluate` wrote, and keep the files beside it"
        ) from error


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All complete lines of a file of rows or times."""
    return [line for _, line in _numbered_lines(Path(path))]


def read_times(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All lines of times of a run; empty if there is no such file."""
    path = Path(path).with_suffix(".times.jsonl")
    return read_rows(path) if path.exists() else []


def session_remarks(times: Sequence[dict[str, Any]]) -> list[str]:
    """Package versions and devices in which the sessions of a run differ."""
    sessions = [line["session"] for line in times if "session" in line]
    facts = [{"device": each["device"], **each["versions"]} for each in sessions]
    names = dict.fromkeys(name for each in facts for name in each)
    values = {name: dict.fromkeys(str(each.get(name)) for each in facts) for name in names}
    return [
        f"rows of several sessions with {name} {', '.join(found)}"
        for name, found in values.items()
        if len(found) > 1
    ]


def write_text(path: Path, text: str) -> None:
    """Write a file; ``ValueError`` if that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: writing failed: {error.strerror}") from error


class _LineFile:
    """A file to which complete lines are appended, locked until ``stack`` closes it."""

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self._path, self._size = path, 0
        try:
            self._file = stack.enter_context(path.open("a+b", buffering=0))
        except OSError as error:
            raise ValueError(f"{path}: cannot be written to: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path}: another run is writing to it: let it finish, or give another --out"
            ) from error

    def drop_partial_line(self) -> None:
        """Remove a last line without its end; call it before the first ``append``."""
        self._file.seek(0)
        self._size = self._file.read().rfind(b"\n") + 1
        self._file.truncate(self._size)

    def append(self, line: dict[str, Any]) -> None:
        data = memoryview((json.dumps(line, ensure_ascii=False) + "\n").encode())
        try:
            left = data
            while left:  # a nearly full disk accepts a part
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise ValueError(
                f"{self._path}: writing failed: {error.strerror}; the rows written so far are "
                "complete: free disk space, and run the same command again to resume"
            ) from error
        self._size += len(data)


def _check_run(path: Path, run: dict[str, Any]) -> None:
    """Compare the settings with those of the existing rows; write them if there are no rows."""
    if path.stat().st_size == 0:
        return _write_run(path, run)
    before, now = read_run(path), json.loads(json.dumps(run))
    differ = [
        f"{name} {_shortened(before.get(name))}, not {_shortened(now.get(name))}"
        for name in sorted((before.keys() | now.keys()) - NOT_COMPARED)
        if before.get(name) != now.get(name)
    ]
    if differ:
        raise ValueError(
            f"{path}: holds the results of another run: {'; '.join(differ)}. Give another --out, "
            "or the same settings to resume"
        )


def _write_run(path: Path, run: dict[str, Any]) -> None:
    text = json.dumps(run, ensure_ascii=False, indent=1) + "\n"
    write_text(path.with_suffix(".run.json"), text)


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _existing_keys(path: Path, questions: Sequence[Question]) -> set[Key]:
    """Keys of the rows in a file; each must be about an unchanged question."""
    asked = {question.id: question for question in questions}
    found: set[Key] = set()
    for number, row in _numbered_lines(path):
        place = f"{path}, line {number}"
        try:
            key = key_of(row)
        except KeyError as error:
            raise ValueError(f"{place}: not a row of results: {error} is missing") from error
        columns = {name: value for name, value in row.items() if name not in RESULT_COLUMNS}
        question = asked.get(key[0])
        if question is not None and question.columns != columns:
            raise ValueError(
                f"{place}: the question {key[0]!r} has changed since it was answered: give another "
                "--out, or delete this line"
            )
        if key in found:
            raise ValueError(f"{place}: answers {key} a second time; delete the line")
        found.add(key)
    return found


def _numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = decode_line(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        yield number, row
