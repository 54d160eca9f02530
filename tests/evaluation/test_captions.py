"""Which videos a command line names, and what is asked about them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from omnizip_jax.evaluation.captions import caption_questions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files as they lie around in a folder of videos; none of them is opened."""
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


def test_a_folder_is_searched_with_all_below_it(folder):
    found = ["videos/a.MKV", "videos/b.mp4", "videos/d.mp4/part.ts", "videos/in/c.webm"]
    assert names("videos") == names("./videos/") == found


def test_a_list_counts_from_where_it_lies(folder):
    text = "b.mp4\n\n  in/c.webm \r\n/abs/x.mov\nhttps://host/y.mp4\ngone.mp4\n"
    (folder / "list.txt").write_text("\ufeff" + text)
    videos = ["videos/b.mp4", "videos/in/c.webm", "/abs/x.mov", "https://host/y.mp4"]
    assert names("videos/list.txt") == [*videos, "videos/gone.mp4"]


def test_several_sources_keep_their_order(folder):
    videos = ["videos/b.mp4", "https://host/y.mp4", "videos/in/c.webm"]
    assert names("videos/b.mp4", "https://host/y.mp4", "videos/in") == videos
    assert names("videos/a.srt") == ["videos/a.srt"]  # named, so meant


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["gone"], r"^gone: no such video, list or folder"),
        (["gone.txt"], r"^gone\.txt: no such video"),
        (["empty"], r"^empty: no video in this folder \(\.3gp, "),
        (["empty.txt"], r"^empty\.txt: names no video"),
        (["latin.txt"], r"^latin\.txt: no list of videos that can be read"),
        (["twice.txt"], r"^twice\.txt, line 3: a\.mp4 is .* first by twice\.txt, line 1"),
        (["videos", "videos/b.mp4"], "command line: videos/b.mp4 is .* first by videos$"),
    ],
)
def test_bad_sources_are_named(folder, sources, message):
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("nö.mp4\n".encode("latin-1"))
    Path("twice.txt").write_text("a.mp4\nb.mp4\n./a.mp4\n")
    with pytest.raises(ValueError, match=message):
        caption_questions(sources, "Describe it.")


def test_many_problems_are_shortened(folder):
    Path("twice.txt").write_text("a.mp4\n" * 20)
    with pytest.raises(ValueError, match=r"line 11: .*\nand 9 more$"):
        caption_questions(["twice.txt"], "Describe it.")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are any bytes on Linux")
def test_names_that_are_no_text(folder):
    Path(os.fsdecode(b"videos/\xff.mp4")).touch()
    with pytest.raises(ValueError, match="is not UTF-8: rename the file"):
        caption_questions(["videos"], "Describe it.")
