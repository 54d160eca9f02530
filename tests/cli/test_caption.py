"""The command ``caption``, and ``--cluster`` without Ray."""

from __future__ import annotations

import importlib.util
import json

import pytest

import omnizip_jax
from omnizip_jax.cli.main import main
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.testbed.synthetic_clips import make_clip

PROMPT = "Which colour was seen first?"


@pytest.fixture
def videos(tmp_path, tiny, monkeypatch):
    """A folder with three files that are not videos; the checkpoint is loaded already."""
    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: tiny)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("0", "1", "broken"):
        (folder / f"{name}.mp4").write_text("no video")
    return folder


def caption(*more: str, prompt: str = PROMPT) -> int:
    command = ["caption", *more, "--prompt", prompt, "--out", "captions.jsonl"]
    return main([*command, "--checkpoint", "small", "--max-new-tokens", "4"])


def rows(folder) -> list[dict]:
    text = (folder.parent / "captions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_folder_of_videos(videos, small, capsys, monkeypatch):
    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: small)
    for seed in range(2):
        make_clip(seed).write(videos / f"{seed}.mp4")
    assert caption("videos", "--set", "keep=0.45") == 0
    said = capsys.readouterr()
    assert said.out == "2 captions: captions.jsonl\n"
    assert "1 videos have none, videos/broken.mp4 for example: " in said.err
    first, second, broken = rows(videos)
    assert [row["video"] for row in (first, second, broken)] == [
        f"videos/{name}.mp4" for name in ("0", "1", "broken")
    ]
    for row in (first, second):
        answer = omnizip_jax.generate(
            small, row["video"], PROMPT, compression=OmniZipConfig(keep=0.45), max_new_tokens=4
        )
        assert row["reply"] == answer.text and row["question"] == PROMPT
        assert row["tokens"]["video_kept"] == answer.counts.video_kept
        assert row["correct"] is None and row["error"] is None
    assert broken["reply"] is None and broken["correct"] is None and broken["error"]
    # More videos are added, and the same command again has nothing to do.
    before = (videos.parent / "captions.jsonl").read_bytes()
    make_clip(2).write(videos / "2.mp4")
    for _ in range(2):
        assert caption("videos", "--set", "keep=0.45") == 0
        assert (videos.parent / "captions.jsonl").read_bytes().startswith(before)
        assert len(rows(videos)) == 4
    assert "3 captions" in capsys.readouterr().out


def test_results_of_another_prompt_are_refused(videos, capsys):
    (videos / "broken.mp4").rename(videos.parent / "broken.mp4")
    (videos.parent / "list.txt").write_text("broken.mp4\n")
    assert caption("list.txt") == 0
    before = rows(videos)
    assert caption("list.txt", prompt="Why?") == 1
    assert "the question 'broken.mp4' has changed" in capsys.readouterr().err
    assert caption("list.txt", "--method", "all") == 1
    assert "holds the results of another run" in capsys.readouterr().err
    assert rows(videos) == before


@pytest.mark.parametrize(
    ("arguments", "prompt", "message"),
    [
        (["gone.mp4"], PROMPT, "gone.mp4: no such video, list or folder"),
        (["videos", "videos/0.mp4"], PROMPT, "videos/0.mp4 is named a second time"),
        (["videos"], " ", "--prompt: the question must be a text"),
        (["videos", "--method", "some"], PROMPT, "--method some: unknown"),
        (["videos", "--no-audio", "--no-video"], PROMPT, "leave nothing"),
        (["videos", "--workers", "2"], PROMPT, "--workers goes with --cluster"),
    ],
)
def test_bad_arguments(videos, capsys, arguments, prompt, message):
    assert caption(*arguments, prompt=prompt) == 1
    assert message in capsys.readouterr().err
    assert not (videos.parent / "captions.jsonl").exists()


@pytest.mark.parametrize("command", ["caption", "evaluate"])
def test_a_cluster_needs_ray(tmp_path, monkeypatch, capsys, command):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
    )
    out = tmp_path / "out.jsonl"
    more = ["--prompt", PROMPT] if command == "caption" else []
    line = [command, str(tmp_path), *more, "--checkpoint", "small", "--out", str(out)]
    assert main([*line, "--cluster"]) == 1
    assert "pip install 'omnizip_jax[cluster]' brings it" in capsys.readouterr().err
    assert not out.exists()
