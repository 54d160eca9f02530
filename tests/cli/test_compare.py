"""``compare``, ``picture`` and ``methods``: tables, pictures, bad arguments."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bouncing_clip import write_clip
from omnizip_jax.cli import clip_commands
from omnizip_jax.cli.main import main
from omnizip_jax.cli.model_setup import parse_methods
from omnizip_jax.compression import METHODS, AllTokens, FastV, OmniZipConfig, RandomTokens
from omnizip_jax.inference.attention_maps import AttentionMaps
from omnizip_jax.types import TokenKind

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def given(checkpoint, tmp_path_factory):
    """A clip and a checkpoint, as arguments."""
    clip = write_clip(tmp_path_factory.mktemp("compare") / "clip.mp4", seconds=3, size=(96, 64))
    return clip, ["--checkpoint", str(checkpoint), "--grid-slots", "16"]


def test_tables_and_pictures(given, stub_generate, monkeypatch, capsys, tmp_path):
    """With a stub for the model."""
    clip, arguments = given
    arguments = [*arguments, "--methods", "all,random", "--keep", "0.6", "--seed", "3"]
    asked = ["--max-new-tokens", "1", "--out", str(tmp_path / "a")]
    assert main(["compare", str(clip), QUESTION, *arguments, *asked]) == 0
    out = capsys.readouterr().out
    lines = [line.replace("│", "").split() for line in out.splitlines() if line.startswith("│")]
    assert [line[0] for line in lines] == ["all", "random"] * 3
    assert lines[0][1:] == ["A", "door", "opens."] and lines[2][1].endswith("/500")
    assert lines[4][3] == "100%" and lines[4][-2:] == ["250", "ms"]
    assert (tmp_path / "a" / "kept.png").stat().st_size > 20_000
    assert [settings["compression"] for _, _, settings in stub_generate] == [
        *[AllTokens()] * 2,
        *[RandomTokens(keep=0.6)] * 2,
    ]
    clips = {id(clip): clip.spec.grid_slots for clip, _, _ in stub_generate}
    assert list(clips.values()) == [16]  # read once

    def compute_attention_maps(_, clip, question, method, seed):
        assert question == QUESTION and seed == 3
        kind = np.repeat([TokenKind.VIDEO, TokenKind.AUDIO], [30, 50])
        media = np.full((4, 80), 0.01, np.float32)
        return AttentionMaps(media, 1 - media.sum(1), kind, np.zeros(80, int), 2)

    monkeypatch.setattr(clip_commands, "compute_attention_maps", compute_attention_maps)
    wanted = ["--question", QUESTION, "--out", str(tmp_path / "b")]
    assert main(["picture", str(clip), *arguments, *wanted]) == 0
    for name in ("kept.png", "attention.png"):
        assert (tmp_path / "b" / name).stat().st_size > 20_000


@pytest.mark.slow
def test_compare_then_picture(given, capsys, tmp_path):
    clip, arguments = given
    arguments = [*arguments, "--methods", "all,omnizip,fastv", "--keep", "0.6"]
    asked = ["--max-new-tokens", "1", "--out", str(tmp_path / "a")]
    assert main(["compare", str(clip), QUESTION, *arguments, *asked]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert set(rows) == {"all", "omnizip", "fastv"}
    tokens = [line for line in out.splitlines() if line.startswith("│") and "%" in line]
    audio, kept, layers = (tokens[1].replace("│", "").split()[i] for i in (1, 3, 5))
    assert audio.endswith("/75") and kept == layers == "60.0%"
    assert tokens[2].replace("│", "").split()[3::2] == ["100.0%", "60.0%"]
    assert "100%" in rows["all"] and "kB" in rows["all"] and "ms" in rows["all"]
    assert (tmp_path / "a" / "kept.png").stat().st_size > 20_000

    wanted = ["--question", QUESTION, "--out", str(tmp_path / "b")]
    assert main(["picture", str(clip), *arguments, *wanted]) == 0
    for name in ("kept.png", "attention.png"):
        assert (tmp_path / "b" / name).stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "omnizip,nonsense"], "nonsense: unknown; take one of"),
        (["--methods", "omnizip,omnizip"], "each method once"),
        (["--methods", "fastv", "--keep", "0.1"], "fastv: FastV reads all tokens in"),
        (["--methods", "published", "--keep", "0.35"], "published has the settings"),
        (["--methods", "random", "--set", "merge_size=3"], "random has the settings"),
        (["--methods", "random", "--keep", "1.5"], "share between 0 and 1"),
        (["--out", "{clip}"], "not a folder"),
        (["--checkpoint", "{clip}/none"], "none"),
        (["--question", " "], "--question"),
    ],
)
def test_bad_arguments_are_one_message(given, capsys, tmp_path, arguments, message):
    clip, checkpoint = given
    typed = ["picture", str(clip), *checkpoint, "--out", str(tmp_path), *arguments]
    assert main([word.format(clip=clip) for word in typed]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_a_missing_clip_is_named(given, capsys, tmp_path):
    assert main(["compare", "none.mp4", QUESTION, *given[1], "--out", str(tmp_path)]) == 1
    assert "none.mp4" in capsys.readouterr().err


def test_settings_go_to_the_methods_that_have_them():
    found = parse_methods("all, omnizip,random,fastv", ["keep=0.5", "merge-size=2", "after=7"])
    assert found == {
        "all": AllTokens(),
        "omnizip": OmniZipConfig(keep=0.5, merge_size=2),
        "random": RandomTokens(keep=0.5),
        "fastv": FastV(keep=0.5, after=7),
    }


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert set(METHODS) <= set(rows)
    assert rows["omnizip"][1] == rows["fastv"][1] == "yes"  # streams; inside the decoder
    assert out.splitlines()[1].index("in decoder") == _column(out, "fastv")
    assert main(["methods", "dycoke"]) == 0
    out = capsys.readouterr().out
    assert "audio_frame" in out and "12" in out
    assert main(["methods", "nonsense"]) == 1
    assert "method nonsense: unknown" in capsys.readouterr().err


def _column(out, name):
    """Where the line of a method says yes."""
    return next(line for line in out.splitlines() if line.split()[:1] == [name]).index("yes")
