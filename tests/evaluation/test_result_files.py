"""Files of results: appending, resuming, damaged files, full disks."""

from __future__ import annotations

import contextlib
import json
import resource

import pytest

from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import ResultFiles, read_rows, read_run

RUN = {"methods": {"all": {"method": "AllTokens"}}, "weights": "abc", "checkpoint": "here"}


def question(name: str, words: str = "Why?") -> Question:
    return Question(name, "a.mp4", words, columns={"id": name, "question": words})


def row(name: str, reply: str = "no") -> dict:
    return {"id": name, "question": "Why?", "method": "all", "seed": 0, "reply": reply}


QUESTIONS = [question(name) for name in "abc"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultFiles(path, RUN, QUESTIONS) as results:
        results.append(row("a"))
        results.times.append({"seconds": 1})
        results.append(row("b", "nö"))
    return path


def test_existing_rows_are_kept(path):
    with ResultFiles(path, RUN | {"checkpoint": "elsewhere"}, QUESTIONS) as results:
        assert results.done == {("a", "all", 0), ("b", "all", 0)}
        results.append(row("c"))
    assert read_rows(path) == [row("a"), row("b", "nö"), row("c")]
    assert read_run(path) == RUN
    assert (path.parent / "results.times.jsonl").read_text() == '{"seconds": 1}\n'


@pytest.mark.parametrize("torn", [b'{"id": "c", "meth', b"{", '{"reply": "nö'.encode()[:-1]])
def test_an_incomplete_last_line_is_removed(path, torn):
    before = path.read_bytes()
    path.write_bytes(before + torn)
    with ResultFiles(path, RUN, QUESTIONS) as results:
        assert len(results.done) == 2
        results.append(row("c"))
    assert path.read_bytes() == before + json.dumps(row("c")).encode() + b"\n"


def test_another_run_is_refused_by_name(path):
    before = path.read_bytes()
    other = RUN | {"weights": "def", "methods": {"omnizip": {"method": "OmniZipConfig"}}}
    with pytest.raises(ValueError, match=r"results\.jsonl: holds the results of another run") as e:
        ResultFiles(path, other, QUESTIONS)
    assert 'weights "abc", not "def"' in str(e.value) and "OmniZipConfig" in str(e.value)
    assert path.read_bytes() == before and read_run(path) == RUN


def test_a_question_that_has_changed_is_refused(path):
    with pytest.raises(ValueError, match="line 2: the question 'b' has changed"):
        ResultFiles(path, RUN, [question("a"), question("b", "Who?")])


def test_other_files_are_refused_unchanged(tmp_path):
    path = tmp_path / "notes.jsonl"
    for notes in ("my notes\n", "no end"):
        path.write_text(notes)
        with pytest.raises(ValueError, match="settings of the run cannot be read"):
            ResultFiles(path, RUN, QUESTIONS)
        assert path.read_text() == notes and [*tmp_path.iterdir()] == [path]
    with pytest.raises(ValueError, match=r"whose name ends in \.jsonl"):
        ResultFiles(tmp_path / "results.json", RUN, QUESTIONS)
    with pytest.raises(ValueError, match="cannot be written to"):
        ResultFiles(tmp_path / "no" / "results.jsonl", RUN, QUESTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken\n", "line 3: unreadable"),
        ("[]\n", "line 3: unreadable"),
        ('{"id": "c"}\n', "line 3: not a row of results: 'method' is missing"),
        (json.dumps(row("a")) + "\n", "line 3: answers .* a second time"),
    ],
)
def test_damaged_rows_are_named(path, line, message):
    with path.open("a") as file:
        file.write(line)
        file.write("torn")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        ResultFiles(path, RUN, QUESTIONS)
    assert path.read_bytes() == before


def test_the_number_of_questions_is_that_of_the_largest_call(path):
    """A run is partial until all questions that were ever asked have rows."""
    for asked, known in ((3, 3), (5, 5), (2, 5)):
        with ResultFiles(path, RUN | {"questions": asked, "runs": 2}, QUESTIONS):
            pass
        assert read_run(path) == RUN | {"questions": known, "runs": 2}


def test_two_runs_at_once(path):
    with (
        ResultFiles(path, RUN, QUESTIONS),
        pytest.raises(ValueError, match="another run is writing"),
    ):
        ResultFiles(path, RUN, QUESTIONS)
    ResultFiles(path, RUN, QUESTIONS).__exit__()


@contextlib.contextmanager
def disk_of(size: int):
    """A limit on the size of files, at which writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_complete_rows(path):
    before = path.read_bytes()
    with ResultFiles(path, RUN, QUESTIONS) as results:
        with (
            disk_of(len(before) + 20),
            pytest.raises(ValueError, match=r"results\.jsonl: writing failed: .* to resume"),
        ):
            results.append(row("c"))
        assert path.read_bytes() == before and ("c", "all", 0) not in results.done
        results.append(row("c"))
    assert read_rows(path)[-1] == row("c")


def test_rows_may_be_in_any_order(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    with ResultFiles(path, RUN, QUESTIONS) as results:
        assert results.done == {("a", "all", 0), ("b", "all", 0)}
        results.append(row("c"))
    assert [each["id"] for each in read_rows(path)] == ["b", "a", "c"]
