"""The command line: help, answers, messages, exit codes."""

from __future__ import annotations

import wave
from argparse import Namespace

import pytest

from benchmarks.bouncing_clip import write_clip
from omnizip_jax.cli.main import main
from omnizip_jax.cli.model_setup import window_spec
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.window_spec import WindowSpec


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A folder with a clip and the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "checkpoint").symlink_to(checkpoint)
    write_clip(folder / "clip.mp4", seconds=3, size=(96, 64))
    return folder


def test_generate_passes_its_options_and_prints_the_answer(stub_generate, capsys, tmp_path):
    picture = tmp_path / "kept.png"
    code = main(
        [
            *("generate", "clip.mp4", "What happens?", "--checkpoint", "any", "--no-audio"),
            *("--max-new-tokens", "8", "--set", "rho_audio=0.4", "--set", "rho-video=0.7"),
            *("--max-frames", "6", "--grid-slots", "16", "--temperature", "0.5", "--top-p", "0.9"),
            *("--seed", "3", "--picture", str(picture), "--audio-stream", "1"),
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0 and out == "A door opens.\n"
    assert "/500, video" in err and "prefill 0.25 s" in err and f"[picture: {picture}]" in err
    assert picture.stat().st_size > 10_000
    ((clip, question, settings),) = stub_generate
    assert (clip, question) == ("clip.mp4", "What happens?")
    assert settings.pop("spec").grid_slots == 16
    del settings["on_text"], settings["progress"]
    assert settings == {
        "compression": OmniZipConfig(rho_audio=0.4, rho_video=0.7),
        "max_new_tokens": 8,
        "system": None,
        "use_audio": False,
        "use_video": True,
        "audio_stream": 1,
        "video_stream": None,
        "max_frames": 6,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
    }


@pytest.mark.parametrize("words", [["./-clip.mp4", "Why?"], ["--", "-clip.mp4", "Why?"]])
def test_a_clip_whose_name_begins_with_a_dash(stub_generate, words, capsys):
    assert main(["generate", "--checkpoint", "any", "--max-new-tokens", "8", *words]) == 0
    ((clip, question, _),) = stub_generate
    assert (clip, question) == (words[-2], "Why?")


@pytest.mark.slow
def test_generate(folder, capsys, tmp_path):
    picture = tmp_path / "kept.png"
    code = main(
        [
            *("generate", str(folder / "clip.mp4"), "What happens?"),
            *("--checkpoint", str(folder / "checkpoint"), "--max-new-tokens", "8"),
            *("--set", "rho_audio=0.4", "--set", "rho_video=0.7", "--grid-slots", "144"),
            *("--picture", str(picture)),
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0 and out.strip()
    assert "audio 48/75" in err and "video 126/420" in err and "prefill" in err
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_no_compression(folder, capsys):
    clip, checkpoint = str(folder / "clip.mp4"), str(folder / "checkpoint")
    arguments = ["generate", clip, "Why?", "--checkpoint", checkpoint, "--method", "all"]
    assert main([*arguments, "--max-new-tokens", "2"]) == 0
    assert "= 100%" in capsys.readouterr().err


def test_a_stream_of_audio_alone_has_no_video_markers(tiny, tmp_path, monkeypatch):
    """Its prompt begins as that of ``generate``."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 16000, "NONE", ""))
        file.writeframes(bytes(32000))
    settings_used = {}

    def init_compiled_stream(_, method, **settings):
        settings_used.update(settings)
        raise ValueError("enough")

    monkeypatch.setattr("omnizip_jax.cli.stream_command.init_compiled_stream", init_compiled_stream)
    monkeypatch.setattr("omnizip_jax.cli.model_setup.load", lambda *_, **__: tiny)
    assert main(["stream", str(tmp_path / "sound.wav"), "--checkpoint", "any", "--json"]) == 1
    assert settings_used["audio"] is True and settings_used["video"] is False


def test_grid_slots_default_to_the_checkpoint():
    spec = WindowSpec(grid_slots=36)
    for given, slots in {None: 36, 16: 16}.items():
        assert window_spec(Namespace(grid_slots=given), spec) == WindowSpec(grid_slots=slots)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "no.mp4", "Why?", "--checkpoint", "{checkpoint}"], "no.mp4"),
        (["generate", "{clip}", "Why?", "--checkpoint", "nowhere"], "omnizip convert"),
        (["generate", "{clip}", " ", "--checkpoint", "{checkpoint}"], "question must be a text"),
        (
            [
                "generate",
                "{clip}",
                "Why?",
                "--checkpoint",
                "{checkpoint}",
                "--set",
                "rho_video=0.9",
            ],
            "raise rho_max",
        ),
        (["convert", "nowhere", "target"], "nowhere"),
    ],
)
def test_bad_input_is_one_message(folder, capsys, arguments, message):
    paths = {"clip": folder / "clip.mp4", "checkpoint": folder / "checkpoint"}
    assert main([argument.format(**paths) for argument in arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_ctrl_c_during_a_conversion(capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("omnizip_jax.checkpoint.convert.convert", stop)
    assert main(["convert", "source", "target"]) == 130
    assert "omnizip: stopped" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["generate"], ["convert"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: omnizip" in capsys.readouterr().out
