"""Files of questions: what is asked, and every way in which a line can be wrong."""

from __future__ import annotations

import json

import pytest

from omnizip_jax.evaluation.question_file import BadQuestions, read_questions, write_questions

GOOD = {"id": "1", "video": "a.mp4", "question": "Who?", "options": ["he", "she"], "answer": "B"}


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        return path

    return write


def test_a_question(write, tmp_path):
    (question,) = read_questions(write(GOOD | {"start": 1, "end": 2.5, "mood": {"a": [1]}}))
    assert (question.id, question.text, question.answer) == ("1", "Who?", "B")
    assert question.clip == (str(tmp_path / "a.mp4"), 1.0, 2.5)
    assert question.choices == ("A. he", "B. she")
    assert question.columns["mood"] == {"a": [1]}


@pytest.mark.parametrize(
    ("video", "where"),
    [
        ("/x/a.mp4", "/x/a.mp4"),
        ("https://host/a.mp4", "https://host/a.mp4"),
        ("~/a.mp4", "~/a.mp4"),
    ],
)
def test_videos_that_say_where_they_are(write, video, where):
    assert read_questions(write(GOOD | {"video": video}))[0].video == where


def test_letters_that_are_there_are_left(write):
    for options in (["A. he", "B. she"], ["(A) he", "(B) she"], ["A) he", "B) she"]):
        assert read_questions(write(GOOD | {"options": options}))[0].choices == tuple(options)
    odd = ["A. he", "C. she"]
    assert read_questions(write(GOOD | {"options": odd}))[0].choices == ("A. A. he", "B. C. she")


@pytest.mark.parametrize(("answer", "letter"), [("b", "B"), (" A ", "A"), ("she", "B")])
def test_answers_name_an_option(write, answer, letter):
    assert read_questions(write(GOOD | {"answer": answer}))[0].answer == letter


def test_free_answers_and_unknown_ones(write):
    free = {"id": 1, "video": "a.mp4", "question": "Who?"}
    asked = read_questions(write(free | {"answer": "The host."}, "", free | {"id": 2}))
    assert [question.answer for question in asked] == ["The host.", None]
    assert [question.id for question in asked] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "unreadable"),
        ("[1]", "expected a JSON object, got list"),
        ('"text"', "got str"),
        ({"video": "a.mp4", "question": "Who?"}, "'id' must be"),
        (GOOD | {"id": True}, "'id' must be"),
        (GOOD | {"video": ""}, "'video' must be a text"),
        (GOOD | {"question": 3}, "'question' must be a text"),
        (GOOD | {"answer": None}, "options without an answer"),
        (GOOD | {"answer": "C"}, "a letter from A to B"),
        (GOOD | {"options": ["one"]}, "'options' must be a list"),
        (GOOD | {"options": "he, she"}, "'options' must be a list"),
        (GOOD | {"start": -1}, "'start' must be seconds"),
        (GOOD | {"end": "0:10"}, "'end' must be seconds"),
        (GOOD | {"start": 3, "end": 2}, "'end' must lie behind 'start'"),
        (GOOD | {"reply": "B"}, "columns reply belong to the results"),
        (GOOD | {"id": "0"}, "the id '0' is that of line 1"),
    ],
)
def test_bad_lines_are_named_with_file_and_line(write, line, message):
    path = write(GOOD | {"id": "0"}, line)
    with pytest.raises(BadQuestions, match=r"questions\.jsonl, line 2: ") as caught:
        read_questions(path)
    assert message in str(caught.value)


def test_all_bad_lines_at_once(write):
    with pytest.raises(BadQuestions) as caught:
        read_questions(write(*["?"] * 12, GOOD))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 2 lines more"


def test_a_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(BadQuestions, match="line 1: unreadable"):
        read_questions(path)


def test_an_empty_file(write):
    with pytest.raises(BadQuestions, match="no question in it"):
        read_questions(write(""))


def test_written_questions_are_read(tmp_path):
    assert write_questions([GOOD, GOOD | {"id": "é"}], tmp_path / "q.jsonl") == 2
    assert [question.id for question in read_questions(tmp_path / "q.jsonl")] == ["1", "é"]
