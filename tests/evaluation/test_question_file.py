"""Files of questions and lists of videos: valid content, and every kind of invalid content."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from omnizip_jax.evaluation.question_file import (
    caption_questions,
    lettered,
    read_questions,
    write_questions,
)

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
    assert lettered(question.options) == ("A. he", "B. she")
    assert question.columns["mood"] == {"a": [1]}


@pytest.mark.parametrize(
    ("video", "where"),
    [
        ("/x/a.mp4", "/x/a.mp4"),
        ("https://host/a.mp4", "https://host/a.mp4"),
        ("~/a.mp4", "~/a.mp4"),
    ],
)
def test_absolute_paths_and_urls(write, video, where):
    assert read_questions(write(GOOD | {"video": video}))[0].video == where


def test_existing_letters_are_kept(write):
    for options in (["A. he", "B. she"], ["(A) he", "(B) she"], ["A) he", "B) she"]):
        question = read_questions(write(GOOD | {"options": options}))[0]
        assert lettered(question.options) == tuple(options)
    odd = ["A. he", "C. she"]
    question = read_questions(write(GOOD | {"options": odd}))[0]
    assert lettered(question.options) == ("A. A. he", "B. C. she")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("b", "B"), (" A ", "A"), ("she", "B"), ("She.", "B"), ("(b)", "B"), ("B. she", "B")],
)
def test_answers_name_an_option(write, answer, letter):
    assert read_questions(write(GOOD | {"answer": answer}))[0].answer == letter


@pytest.mark.parametrize(
    ("options", "answer", "letter", "text"),
    [
        (["C", "D", "E", "A"], "C", "(C)", "A. C"),
        (["A. C", "B. D", "C. E"], "C", "(C)", "A. C"),
        (["b", "a"], "a", "(a)", "B. a"),
    ],
)
def test_a_letter_that_is_the_text_of_another_option(write, options, answer, letter, text):
    line = GOOD | {"options": options, "answer": answer}
    with pytest.raises(ValueError, match="the text of another option: write") as caught:
        read_questions(write(line))
    assert repr(letter) in str(caught.value) and repr(text) in str(caught.value)
    for unambiguous, expected in ((letter, letter[1].upper()), (text, text[0])):
        assert read_questions(write(line | {"answer": unambiguous}))[0].answer == expected
    assert read_questions(write(GOOD | {"options": ["A", "B"], "answer": "B"}))[0].answer == "B"


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
        (GOOD | {"answer": None}, "a text (there are options)"),
        (GOOD | {"answer": "C"}, "a letter from A to B"),
        (GOOD | {"options": ["one"]}, "'options' must be a list"),
        (GOOD | {"options": "he, she"}, "'options' must be a list"),
        (GOOD | {"start": -1}, "'start' must be seconds"),
        (GOOD | {"end": "0:10"}, "'end' must be seconds"),
        (GOOD | {"start": 3, "end": 2}, "'end' must be after 'start'"),
        (GOOD | {"reply": "B"}, "columns reply belong to the results"),
        (GOOD | {"id": "0"}, "the id '0' is that of line 1"),
    ],
)
def test_invalid_lines_are_named_with_file_and_line(write, line, message):
    path = write(GOOD | {"id": "0"}, line)
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 2: ") as caught:
        read_questions(path)
    assert message in str(caught.value)


def test_all_invalid_lines_are_listed(write):
    with pytest.raises(ValueError) as caught:
        read_questions(write(*["?"] * 12, GOOD))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 2 more lines"


def test_a_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1: unreadable"):
        read_questions(path)


def test_an_empty_file(write):
    with pytest.raises(ValueError, match="no question in it"):
        read_questions(write(""))


def test_written_questions_are_read(tmp_path):
    assert write_questions([GOOD, GOOD | {"id": "é"}], tmp_path / "q.jsonl") == 2
    assert [question.id for question in read_questions(tmp_path / "q.jsonl")] == ["1", "é"]


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """A folder with videos and other files; none of them is opened."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.MKV", "in/c.webm", "notes.txt", "._b.mp4", "a.srt", "d.mp4/part.ts"):
        path = Path("videos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Path("videos")


def names(*sources: str) -> list[str]:
    questions = caption_questions(sources, "Describe it.")
    assert all(
        q.id == q.video == q.columns["video"] and q.text == "Describe it." for q in questions
    )
    assert not any(q.options or q.answer for q in questions)
    return [question.video for question in questions]


def test_a_folder_is_searched_recursively(videos):
    found = ["videos/a.MKV", "videos/b.mp4", "videos/d.mp4/part.ts", "videos/in/c.webm"]
    assert names("videos") == names("./videos/") == found


def test_paths_of_a_list_are_relative_to_it(videos):
    text = "b.mp4\n\n  in/c.webm \r\n/abs/x.mov\nhttps://host/y.mp4\ngone.mp4\n"
    (videos / "list.txt").write_text("\ufeff" + text)
    videos = ["videos/b.mp4", "videos/in/c.webm", "/abs/x.mov", "https://host/y.mp4"]
    assert names("videos/list.txt") == [*videos, "videos/gone.mp4"]


def test_several_sources_keep_their_order(videos):
    videos = ["videos/b.mp4", "https://host/y.mp4", "videos/in/c.webm"]
    assert names("videos/b.mp4", "https://host/y.mp4", "videos/in") == videos
    assert names("videos/a.srt") == ["videos/a.srt"]  # named explicitly


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["gone"], r"^gone: no such video, list or folder"),
        (["gone.txt"], r"^gone\.txt: no such video"),
        (["empty"], r"^empty: no video in this folder \(\.3gp, "),
        (["empty.txt"], r"^empty\.txt: names no video"),
        (["latin.txt"], r"^latin\.txt: the list of videos cannot be read"),
        (["twice.txt"], r"^twice\.txt, line 3: a\.mp4 is .* first by twice\.txt, line 1"),
        (["videos", "videos/b.mp4"], "command line: videos/b.mp4 is .* first by videos$"),
    ],
)
def test_bad_sources_are_named(videos, sources, message):
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("nö.mp4\n".encode("latin-1"))
    Path("twice.txt").write_text("a.mp4\nb.mp4\n./a.mp4\n")
    with pytest.raises(ValueError, match=message):
        caption_questions(sources, "Describe it.")


def test_one_source_may_be_a_string(videos):
    assert [question.video for question in caption_questions("videos/b.mp4", "Describe it.")] == [
        "videos/b.mp4"
    ]


def test_many_problems_are_shortened(videos):
    Path("twice.txt").write_text("a.mp4\n" * 20)
    with pytest.raises(ValueError, match=r"line 11: .*\nand 9 more$"):
        caption_questions(["twice.txt"], "Describe it.")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
def test_names_that_are_not_utf8(videos):
    Path(os.fsdecode(b"videos/\xff.mp4")).touch()
    with pytest.raises(ValueError, match="is not UTF-8: rename the file"):
        caption_questions(["videos"], "Describe it.")
