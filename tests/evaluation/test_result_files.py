"""Files of results: nothing is lost, nothing is mixed up."""

from __future__ import annotations

import contextlib
import json
import resource

import pytest

from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Results, read_rows, read_run, read_times

RUN = {"methods": {"all": {"method": "AllTokens"}}, "weights": "abc", "checkpoint": "here"}


def question(name: str, words: str = "Why?") -> Question:
    return Question(name, "a.mp4", words, columns={"id": name, "question": words})


def row(name: str, reply: str = "no") -> dict:
    return {"id": name, "question": "Why?", "method": "all", "seed": 0, "reply": reply}


QUESTIONS = [question(name) for name in "abc"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path, RUN, QUESTIONS) as results:
        results.append(row("a"), {"seconds": 1})
        results.append(row("b", "nö"), None)
    return path


def test_rows_are_gone_on_from(path):
    with Results(path, RUN | {"checkpoint": "elsewhere"}, QUESTIONS) as results:
        assert results.done == {("a", "all", 0), ("b", "all", 0)}
        results.append(row("c"), None)
    assert read_rows(path) == [row("a"), row("b", "nö"), row("c")]
    assert read_run(path) == RUN
    assert (path.parent / "results.times.jsonl").read_text() == '{"seconds": 1}\n'


@pytest.mark.parametrize("torn", [b'{"id": "c", "meth', b"{", '{"reply": "nö'.encode()[:-1]])
def test_a_torn_last_line_is_cut_off(path, torn):
    before = path.read_bytes()
    path.write_bytes(before + torn)
    with Results(path, RUN, QUESTIONS) as results:
        assert len(results.done) == 2
        results.append(row("c"), None)
    assert path.read_bytes() == before + json.dumps(row("c")).encode() + b"\n"


def test_another_run_is_refused_by_name(path):
    before = path.read_bytes()
    other = RUN | {"weights": "def", "methods": {"omnizip": {"method": "OmniZipConfig"}}}
    with pytest.raises(ValueError, match=r"results\.jsonl: holds the results of another run") as e:
        Results(path, other, QUESTIONS)
    assert 'weights "abc", not "def"' in str(e.value) and "OmniZipConfig" in str(e.value)
    assert path.read_bytes() == before and read_run(path) == RUN


def test_a_question_that_has_changed_is_refused(path):
    with pytest.raises(ValueError, match="line 2: the question 'b' has changed"):
        Results(path, RUN, [question("a"), question("b", "Who?")])


def test_files_that_are_no_results_stay_as_they_are(tmp_path):
    path = tmp_path / "notes.jsonl"
    for notes in ("my notes\n", "no end"):
        path.write_text(notes)
        with pytest.raises(ValueError, match="does not say what was run"):
            Results(path, RUN, QUESTIONS)
        assert path.read_text() == notes and [*tmp_path.iterdir()] == [path]
    with pytest.raises(ValueError, match=r"whose name ends in \.jsonl"):
        Results(tmp_path / "results.json", RUN, QUESTIONS)
    with pytest.raises(ValueError, match="cannot be written to"):
        Results(tmp_path / "no" / "results.jsonl", RUN, QUESTIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken\n", "line 3: unreadable"),
        ("[]\n", "line 3: unreadable"),
        ('{"id": "c"}\n', "line 3: no row of results: 'method' is missing"),
        (json.dumps(row("a")) + "\n", "line 3: answers .* a second time"),
    ],
)
def test_damaged_rows_are_named(path, line, message):
    with path.open("a") as file:
        file.write(line)
        file.write("torn")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        Results(path, RUN, QUESTIONS)
    assert path.read_bytes() == before


def test_two_runs_at_once(path):
    with Results(path, RUN, QUESTIONS), pytest.raises(ValueError, match="another run is writing"):
        Results(path, RUN, QUESTIONS)
    Results(path, RUN, QUESTIONS).__exit__()


@contextlib.contextmanager
def disk_of(size: int):
    """Files that cannot grow beyond a size: a write is cut short there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_rows(path):
    before = path.read_bytes()
    with Results(path, RUN, QUESTIONS) as results:
        with (
            disk_of(len(before) + 20),
            pytest.raises(ValueError, match=r"results\.jsonl: writing failed: .* to go on"),
        ):
            results.append(row("c"), None)
        assert path.read_bytes() == before and ("c", "all", 0) not in results.done
        results.append(row("c"), None)
    assert read_rows(path)[-1] == row("c")


ORDER = [(name, "all", 0) for name in "abc"]


def early_of(path):
    return path.with_suffix(".early.jsonl")


def test_early_rows_wait_for_their_turn(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        for name in "cb":
            results.append(row(name), {"came": name})
        assert read_rows(path) == [] and results.done == {("b", "all", 0), ("c", "all", 0)}
        results.append(row("a"), {"came": "a"})
        assert read_rows(path) == [row(name) for name in "abc"]
    assert not early_of(path).exists()
    assert [line["came"] for line in read_times(path)] == ["c", "b", "a"]


@pytest.mark.parametrize("order", [ORDER, ()], ids=["in order", "in any order"])
def test_early_rows_survive_a_stop(tmp_path, order):
    path = tmp_path / "results.jsonl"
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        results.append(row("c"), None)
    with early_of(path).open("a") as file:
        file.write('{"torn')
    with Results(path, RUN, QUESTIONS, order) as results:
        assert results.done == {("c", "all", 0)}
        results.append(row("a"), None)
    assert read_rows(path) == [row("a")] and read_rows(early_of(path)) == [row("c")]
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        results.append(row("b"), None)
    assert read_rows(path) == [row(name) for name in "abc"] and not early_of(path).exists()


def test_early_rows_belong_to_their_run(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        results.append(row("c"), None)
    with pytest.raises(ValueError, match='weights "abc", not "def"'):
        Results(path, RUN | {"weights": "def"}, QUESTIONS, ORDER)
    with pytest.raises(ValueError, match=r"early\.jsonl, line 1: the question 'c' has changed"):
        Results(path, RUN, [question("c", "Who?")], ORDER)
    assert read_rows(early_of(path)) == [row("c")]


def test_a_row_whose_turn_was_cut_short_is_written_once(tmp_path):
    """Killed after a row was written and before the early ones behind it were."""
    path = tmp_path / "results.jsonl"
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        for name in "cb":
            results.append(row(name), None)
    for name in "ab":
        with path.open("a") as file:
            file.write(json.dumps(row(name)) + "\n")
    with Results(path, RUN, QUESTIONS, ORDER) as results:
        assert len(results.done) == 3
    assert read_rows(path) == [row(name) for name in "abc"] and not early_of(path).exists()
