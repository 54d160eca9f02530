"""The commands ``questions``, ``evaluate`` and ``report``."""

from __future__ import annotations

import json
import re

import pytest

from omnizip_jax.cli.main import main
from omnizip_jax.testbed.synthetic_clips import make_clip
from tests.evaluation.dataset_layouts import write_layout


@pytest.fixture
def asked(tmp_path, tiny, monkeypatch, capsys):
    """A benchmark's questions, written by the command; the video cannot be decoded."""
    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: tiny)
    return write_questions(tmp_path, capsys, lambda path: path.write_text("no video"))


def write_questions(folder, capsys, write_video):
    annotations, videos = write_layout("videomme", folder, write_video)
    command = ["questions", "videomme", str(annotations), "--videos", str(videos)]
    assert main([*command, "--out", str(folder / "q.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "2 questions about 1 videos" in out and "768 frames" in out and "not there" not in out
    return folder


def evaluate(folder, *more: str) -> int:
    command = ["evaluate", str(folder / "q.jsonl"), "--out", str(folder / "r.jsonl")]
    return main([*command, "--checkpoint", "small", "--max-new-tokens", "4", *more])


def test_videos_that_cannot_be_decoded_are_rows_of_the_report(asked, capsys):
    assert evaluate(asked, "--method", "all", "--set", "video=true") == 0
    assert "all:video=true" in capsys.readouterr().out
    rows = [json.loads(line) for line in (asked / "r.jsonl").read_text().splitlines()]
    assert [(row["id"], row["method"]) for row in rows] == [
        ("001-1", "all:video=true"),
        ("001-2", "all:video=true"),
    ]
    assert all(".mp4" in row["error"] for row in rows)
    assert main(["report", *map(str, sorted(asked.glob("r*.jsonl")))]) == 0
    assert evaluate(asked, "--set", "keep=0.35") == 1
    assert "results of another run" in capsys.readouterr().err


@pytest.mark.slow
def test_from_questions_to_a_report(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: small)
    asked = write_questions(tmp_path, capsys, make_clip(0).write)
    assert evaluate(asked, "--method", "all", "--set", "video=true") == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    assert "## Accuracy, videomme, %" in out and "| all:video=true | 2 |" in out
    rows = [json.loads(line) for line in (asked / "r.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["all:video=true"] * 2
    assert [row["id"] for row in rows] == ["001-1", "001-2"]
    assert main(["report", *map(str, sorted(asked.glob("r*.jsonl")))]) == 0  # r.times.jsonl, too
    assert "paper: OmniZip, 7B" in capsys.readouterr().out
    assert main(["report", str(asked / "r.jsonl"), "--out", str(asked / "all.md")]) == 0
    assert (asked / "all.md").read_text().startswith("Rows that begin with")
    # The same command again has nothing to do; another one is refused.
    assert evaluate(asked, "--compare", "all:video=true") == 0
    assert evaluate(asked, "--set", "keep=0.35") == 1
    assert "results of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "all", "all"], "all is given twice"),
        (["--compare", "some"], "--method some: unknown"),
        (["--compare", "omnizip:keep"], "each written key=value"),
        (["--compare", "all", "--set", "video=true"], "--set goes with --method"),
        (
            ["--protocol", "mine"],
            "--protocol mine: unknown; take one of default, authors, lmms-eval",
        ),
        (["--no-audio", "--no-video"], "leave nothing"),
    ],
)
def test_bad_arguments(asked, capsys, arguments, message):
    assert evaluate(asked, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (asked / "r.jsonl").exists()


def test_bad_questions_and_runs(asked, capsys):
    (asked / "q.jsonl").write_text("{}\n?\n")
    assert evaluate(asked) == 1
    error = capsys.readouterr().err
    assert "q.jsonl, line 1: 'video' must be a text" in error and "line 2: unreadable" in error
    assert not (asked / "r.jsonl").exists()
    (asked / "q.jsonl").unlink()
    assert evaluate(asked) == 1 and "q.jsonl" in capsys.readouterr().err
    assert main(["report", str(asked / "no.jsonl")]) == 1
    assert "settings of the run cannot be read" in capsys.readouterr().err


def test_missing_videos_are_counted(asked, capsys):
    (asked / "data" / "fFjv93ACGo8.mp4").unlink()
    command = ["questions", "videomme", str(asked / "test.json"), "--out", str(asked / "q.jsonl")]
    assert main(command) == 0
    assert "1 of the videos are not there" in capsys.readouterr().out
