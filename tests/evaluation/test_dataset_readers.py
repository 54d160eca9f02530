"""Readers of benchmarks, on files in the layout that their authors publish."""

from __future__ import annotations

import json

import pytest

from omnizip_jax.evaluation.dataset_readers import (
    BENCHMARKS,
    VideoIndex,
    parse_timestamp,
    read_benchmark,
)
from omnizip_jax.evaluation.question_file import lettered, read_questions, write_questions
from tests.evaluation.dataset_layouts import LAYOUTS, write_layout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_layout_becomes_questions(name, tmp_path):
    annotations, videos = write_layout(name, tmp_path, lambda path: path.write_bytes(b"video"))
    write_questions(read_benchmark(name, annotations, videos), tmp_path / "q.jsonl")
    asked = read_questions(tmp_path / "q.jsonl")
    expected = LAYOUTS[name].expected
    assert len(asked) == len(expected)
    for question, (video, options, answer, end, category) in zip(asked, expected, strict=True):
        assert question.video == str(videos.resolve() / video)
        assert (len(question.options), question.answer) == (options, answer)
        assert (question.end, question.columns["category"]) == (end, category)
        assert question.columns["benchmark"] == name


def test_a_blank_option_keeps_the_letters_of_the_others(tmp_path):
    """AVUT has a question whose right option is blank."""
    annotations, videos = write_layout("avut", tmp_path, lambda path: path.touch())
    data = json.loads(annotations.read_text())
    data[0] |= {"option_B": "", "option_D": "yellow", "answer": "D"}
    annotations.write_text(json.dumps(data))
    columns = read_benchmark("avut", annotations, videos)[0]
    assert columns["options"] == ["A. red", "B. -", "C. blue", "D. yellow"]


def test_letters_are_told_from_texts_that_are_letters(tmp_path):
    """Which chord? An answer of a benchmark is always a letter."""
    annotations, videos = write_layout("shortvid", tmp_path, lambda path: path.touch())
    data = json.loads(annotations.read_text())
    data[0] |= {"candidates": ["C", "D", "E", "A"], "answer": "C"}
    annotations.write_text(json.dumps(data))
    write_questions(read_benchmark("shortvid", annotations, videos), tmp_path / "q.jsonl")
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert question.answer == "C" and lettered(question.options)[2] == "C. E"


def test_a_folder_with_one_json_file(tmp_path):
    annotations, videos = write_layout("avut", tmp_path, lambda path: path.touch())
    assert read_benchmark("avut", annotations.parent, videos)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="name the file with the questions; there are 2"):
        read_benchmark("avut", annotations.parent, videos)


def test_json_lines(tmp_path):
    annotations, videos = write_layout("videomme", tmp_path, lambda path: path.touch())
    lines = "".join(json.dumps(each) + "\n" for each in json.loads(annotations.read_text()))
    (tmp_path / "test.jsonl").write_text(lines)
    assert read_benchmark("videomme", tmp_path / "test.jsonl", videos) == read_benchmark(
        "videomme", annotations, videos
    )


def test_videos_are_found_by_the_end_of_their_path(tmp_path):
    for path in ("a/1/clip.mp4", "b/1/clip.mp4", "b/x.mkv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    find, root = VideoIndex(tmp_path).find, tmp_path.resolve()
    assert find("/mnt/data/b/1/clip.mp4") == str(root / "b/1/clip.mp4")
    assert find("./a/1/clip.mp4") == str(root / "a/1/clip.mp4")
    assert find("x") == str(root / "b/x.mkv")
    assert find("gone.mp4") == str(root / "gone.mp4")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vqa", "[]", "unknown benchmark"),
        ("avut", "[{}]", "question 1 has no 'video_path'"),
        ("avut", '{"a": 1}', "not the annotations of avut"),
        ("worldsense", "[1]", "not the annotations of worldsense"),
        ("shortvid", "[]", "no question in it"),
        ("shortvid", "[", "not JSON"),
        (
            "streamingbench",
            '[{"video_path": "a.mp4", "questions": [{"question": "", "options": [], "answer": "",'
            ' "task_type": "", "time_stamp": "soon"}]}]',
            "expected a time like 0:01:30, got 'soon'",
        ),
    ],
)
def test_other_files_are_refused(name, text, message, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_benchmark(name, tmp_path / "data.json")


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_benchmark("avut", tmp_path / "data.json")
    with pytest.raises(ValueError, match="no folder of videos"):
        read_benchmark("avut", tmp_path / "data.json", tmp_path / "videos")


@pytest.mark.parametrize(("text", "seconds"), [("00:01:52", 112), ("1:02", 62), ("7.5", 7.5)])
def test_time_stamps(text, seconds):
    assert parse_timestamp(text) == seconds
