"""Bad arguments are refused before any work, by name."""

from __future__ import annotations

import os
import sys

import pytest

from omnizip_jax.cli.arguments import check_picture, make_folder
from omnizip_jax.cli.main import main

GENERATE = ["generate", "clip.mp4", "Why?", "--checkpoint", "nowhere"]
STREAM = ["stream", "clip.mp4", "--checkpoint", "nowhere"]
BYTES = b"Wh\xff?".decode("utf-8", "surrogateescape")  # as Python reads a command line


def outcome(arguments, capsys):
    """Exit code and the last line on stderr."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return code, err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*GENERATE, "--seed", "-1"], "--seed"),
        ([*GENERATE, "--seed", str(2**32)], "--seed"),  # for jax the same as 0
        ([*GENERATE, "--seed", str(10**30)], "--seed"),
        ([*GENERATE, "--seed", "1.5"], "--seed"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--stream", "--seed", str(2**64)], "--seed"),
        ([*GENERATE, "--temperature", "nan"], "--temperature"),
        ([*GENERATE, "--top-p", "inf"], "--top-p"),
        ([*GENERATE, "--max-new-tokens", "0"], "--max-new-tokens"),
        ([*GENERATE, "--max-frames", "-3"], "--max-frames"),
        ([*STREAM, "--capacity", "1e3"], "--capacity"),
        ([*GENERATE[:2], BYTES, *GENERATE[3:]], "QUESTION"),
        ([*GENERATE, "--system", BYTES], "--system"),
        ([*STREAM, "--system", BYTES], "--system"),
        ([*STREAM, "--ask", "00:30", BYTES], "--ask"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_named(arguments, name, capsys):
    code, message = outcome(arguments, capsys)
    assert code == 2 and f"argument {name}: must be" in message


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["generate", "-clip.mp4", *GENERATE[2:]], "-clip.mp4"),
        (["generate", "-h.mp4", *GENERATE[2:]], "-h.mp4"),
        (["generate", "-here", *GENERATE[2:]], "-here"),
        (["stream", "-clip.mp4", *STREAM[2:]], "-clip.mp4"),
        (["report", "runs.jsonl", "-r.jsonl"], "-r.jsonl"),
        (["evaluate", "q.jsonl", "--checkpoint", "nowhere", "--out", "-o.jsonl"], "-o.jsonl"),
    ],
)
def test_names_that_begin_with_a_dash_are_explained(arguments, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-here").touch()
    code, message = outcome(arguments, capsys)
    assert code == 2 and f"write './{name}', or put '--' before it, after all options" in message


@pytest.mark.parametrize("bad", [["--seed", "-1.5"], ["--max-frames", "-3"], ["--nonsense"]])
def test_other_words_with_a_dash_are_not_names(bad, capsys):
    code, message = outcome([*GENERATE, *bad], capsys)
    assert code == 2 and "begins with a dash" not in message


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([*GENERATE, "--no-audio", "--no-video"], "--no-audio and --no-video"),
        ([*STREAM, "--no-audio", "--no-video"], "--no-audio and --no-video"),
        ([*STREAM, "--no-audio", "--sound", "other.wav"], "--sound"),
        ([*STREAM, "--ask", "end", " "], "--ask"),
        ([*STREAM, "--ask", "nan", "Why?"], "'nan'"),
        ([*GENERATE, "--set", "rho_video=nan"], "rho_video"),
        ([*GENERATE, "--set", "rho_vidoe=0.5"], "rho_vidoe"),
        ([*GENERATE, "--method", "magic"], "--method magic"),
        ([*GENERATE, "--picture", "{folder}"], "--picture {folder}"),
        ([*GENERATE, "--picture", "{folder}/kept"], "--picture {folder}/kept"),
        ([*GENERATE, "--picture", "{folder}/kept.txt"], ".png"),
        ([*GENERATE, "--picture", "{folder}/nowhere/kept.png"], "--picture {folder}/nowhere"),
        ([*GENERATE, "--picture", "{folder}/pictures.png"], "--picture {folder}/pictures.png"),
        (["demo", "--out", "{folder}/file"], "--out {folder}/file: cannot be made: not a folder"),
        (["demo", "--out", "{folder}/file/demo"], "--out {folder}/file/demo"),
    ],
)
def test_contradicting_arguments_are_named(arguments, name, capsys, tmp_path):
    (tmp_path / "pictures.png").mkdir()
    (tmp_path / "file").touch()
    code, message = outcome([x.format(folder=tmp_path) for x in arguments], capsys)
    assert code == 1 and message.startswith("omnizip: ") and "nowhere:" not in message
    assert name.format(folder=tmp_path) in message
    assert sorted(x.name for x in tmp_path.iterdir()) == ["file", "pictures.png"]


def test_an_existing_picture_is_not_changed_by_the_check(tmp_path):
    there = tmp_path / "there.PNG"
    there.write_bytes(b"before")
    check_picture("--picture", there)
    check_picture("--picture", tmp_path / "new.svg")
    assert there.read_bytes() == b"before" and list(tmp_path.iterdir()) == [there]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions; root may write anywhere"
)
def test_folders_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"--out .*cannot be written to"):
        make_folder("--out", tmp_path)
    with pytest.raises(ValueError, match=r"--out .*cannot be made: Permission denied"):
        make_folder("--out", tmp_path / "demo")
    with pytest.raises(ValueError, match=r"kept.png: cannot be written: Permission denied"):
        check_picture("--picture", tmp_path / "kept.png")
    tmp_path.chmod(0o700)
