"""What a run writes: rows that are appended as they come, and that another run can go on from.

Four files lie side by side: ``NAME.jsonl`` has the rows, the same whenever and however often the
run was stopped; ``NAME.run.json`` says what was run; ``NAME.times.jsonl`` has what differs from one
time to the next, seconds and memory; the fourth is the report. While several devices work,
``NAME.early.jsonl`` has the rows that came before their turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.question_file import RESULTS, Question

Key = tuple[str, str, int]  # id, method, seed
UNCOMPARED = "checkpoint"  # the same weights may lie elsewhere the next time


class Results:
    """A run's files, locked while they are open. Use as a context manager.

    Args:
        path: of the rows, ``NAME.jsonl``; what is there is gone on from.
        run: what is run: settings by name, as JSON has them.
        questions: what is asked.
        order: of all rows; those that come before their turn wait for it on the disk. Without it
            rows are written as they come.

    Attributes:
        done: the rows that are there, by id, method and seed.

    Raises:
        ValueError: what is there was made by another run, or is no such file; another process
            writes to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: dict[str, Any],
        questions: Sequence[Question],
        order: Iterable[Key] = (),
    ):
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"{self.path}: results go to a file whose name ends in .jsonl")
        with contextlib.ExitStack() as stack:
            self._rows = stack.enter_context(_Lines(self.path))
            early = self.path.with_suffix(".early.jsonl")
            _check_run(self.path, run, fresh=not any(map(_holds, (self.path, early))))
            written = _answered(self.path, questions)
            waiting = _answered(early, questions) if _holds(early) else {}
            self._waiting = {key: row for key, row in waiting.items() if key not in written}
            self._turns = deque(key for key in order if key not in written)
            self.done = {*written, *waiting}
            self._times = stack.enter_context(_Lines(self.path.with_suffix(".times.jsonl")))
            self._early = stack.enter_context(_Lines(early))
            for lines in (self._rows, self._times, self._early):  # nothing was touched until here
                lines.trim()
            self._write_waiting()
            self._stack = stack.pop_all()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._waiting:
            self._early.remove()
        self._stack.close()

    def append(self, row: dict[str, Any], times: dict[str, Any] | None) -> None:
        """Write a row, and its times; both are on the disk when this returns.

        A row that is early is written a second time when it is its turn.

        Raises:
            ValueError: they could not be written; what was there before is whole.
        """
        key = key_of(row)
        if self._turns and key != self._turns[0]:
            self._early.append(row)
            self._waiting[key] = row
        else:
            self._rows.append(row)
            if self._turns:
                self._turns.popleft()
        self.done.add(key)
        if times is not None:
            self.note(times)
        self._write_waiting()

    def note(self, times: dict[str, Any]) -> None:
        """Write a line of times."""
        self._times.append(times)

    def _write_waiting(self) -> None:
        """Write the rows whose turn it is."""
        while self._turns and self._turns[0] in self._waiting:
            self._rows.append(self._waiting[self._turns[0]])
            del self._waiting[self._turns.popleft()]


def key_of(row: dict[str, Any]) -> Key:
    """What tells a row from the others of its run."""
    return str(row["id"]), row["method"], row["seed"]


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was run.

    Raises:
        ValueError: nothing says so.
    """
    path = Path(path).with_suffix(".run.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: does not say what was run ({error}): give the .jsonl file that `omnizip "
            "evaluate` wrote, with the files beside it"
        ) from error


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole rows of a results file, or all times."""
    return [line for _, line in _numbered(Path(path))]


def read_times(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What was noted beside the rows."""
    path = Path(path).with_suffix(".times.jsonl")
    return read_rows(path) if path.exists() else []


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either as it was before or all there."""
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise ValueError(f"{path}: writing failed: {error.strerror}") from error


class _Lines:
    """A file to which whole lines are appended, locked while it is open."""

    def __init__(self, path: Path):
        self._path, self._size = path, 0
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written to: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"{path}: another run is writing to it: let it finish, or give another --out"
            ) from error

    def trim(self) -> None:
        """Cut off a torn last line; call it before the first ``append``."""
        self._file.seek(0)
        self._size = self._file.read().rfind(b"\n") + 1
        self._file.truncate(self._size)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def append(self, line: dict[str, Any]) -> None:
        data = memoryview((json.dumps(line, ensure_ascii=False) + "\n").encode())
        try:
            left = data
            while left:  # a disk that fills up takes a part
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise ValueError(
                f"{self._path}: writing failed: {error.strerror}; the rows that are written are "
                "whole: make room, and run the same command again to go on"
            ) from error
        self._size += len(data)


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _check_run(path: Path, run: dict[str, Any], fresh: bool) -> None:
    """Compare with what was run before; write it down if nothing was."""
    file = path.with_suffix(".run.json")
    if fresh:
        write_whole(file, json.dumps(run, ensure_ascii=False, indent=1) + "\n")
        return
    before = read_run(path)
    now = json.loads(json.dumps(run))
    differ = [
        f"{name} {_short(before.get(name))}, not {_short(now.get(name))}"
        for name in sorted((before.keys() | now.keys()) - {UNCOMPARED})
        if before.get(name) != now.get(name)
    ]
    if differ:
        raise ValueError(
            f"{path}: holds the results of another run: {'; '.join(differ)}. Give another --out, "
            "or the same settings to go on"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _answered(path: Path, questions: Sequence[Question]) -> dict[Key, dict[str, Any]]:
    """The rows that are there, each for a question that is still the same."""
    asked = {question.id: question for question in questions}
    found: dict[Key, dict[str, Any]] = {}
    for number, row in _numbered(path):
        try:
            key = key_of(row)
        except KeyError as error:
            raise ValueError(
                f"{path}, line {number}: no row of results: {error} is missing"
            ) from error
        columns = {name: value for name, value in row.items() if name not in RESULTS}
        question = asked.get(key[0])
        if question is not None and question.columns != columns:
            raise ValueError(
                f"{path}, line {number}: the question {key[0]!r} has changed since it was "
                "answered: give another --out, or delete this line"
            )
        if key in found:
            raise ValueError(f"{path}, line {number}: answers {key} a second time; delete the line")
        found[key] = row
    return found


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines: Iterable[bytes] = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: unreadable ({error})") from error
        yield number, row
