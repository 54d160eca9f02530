"""The demo runs with the small model; its accuracy is measured elsewhere."""

from __future__ import annotations

import re

import pytest

from omnizip_jax.cli import demo_command
from omnizip_jax.cli.demo_command import draw_stream_questions, stream_demo
from omnizip_jax.cli.main import main
from omnizip_jax.cli.stream_loop import AnswerEvent
from omnizip_jax.testbed.clip_questions import FAMILIES
from omnizip_jax.testbed.synthetic_clips import (
    DIFFICULTIES,
    STREAM_SEED,
    make_clip,
    sample_clip,
    sample_stream,
)


@pytest.mark.slow  # ``.ci/run`` runs the demo by itself
def test_a_clip(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    for expected in ("truth", "45 %", "35 %", "100.0%", "right answers", "of 6", "--seed 2"):
        assert expected in out
    made = sample_clip(1)
    assert made.objects == make_clip(1, difficulty=DIFFICULTIES["moving"]).objects
    assert all(obj.colour in out and obj.shape in out for obj in made.objects)
    for picture in ("kept", "paper", "methods"):
        assert (tmp_path / "demo" / f"{picture}.png").stat().st_size > 10_000
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", "1"]) == 0  # once more


@pytest.mark.slow
def test_the_second_family(tmp_path, capsys):
    for _ in range(2):  # the second time over the first
        assert main(["demo", "--family", "qwen3-omni", "--out", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    for expected in ("random weights", "parameters", "45 %", "omnizip convert Qwen3-Omni"):
        assert expected in out
    assert (tmp_path / "demo" / "qwen3-omni-kept.png").stat().st_size > 10_000
    assert main(["demo", "--family", "qwen3-omni", "--stream"]) == 1
    assert "leave out --stream" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_is_asked_about_its_mostly_evicted_beginning(tmp_path, capsys):
    assert main(["demo", "--stream", "--out", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    left = re.findall(r"\[(\d\d:\d\d)\] (\d+) of (\d+) tokens left of 0-10 s", out)
    times, now, kept = zip(*[(time, int(a), int(b)) for time, a, b in left], strict=True)
    assert times == ("00:10", "00:40", "01:04") and len(set(kept)) == 1
    assert now[0] == kept[0] > now[1] > now[2] > 0 and now[2] < kept[2] / 2
    questions = draw_stream_questions(sample_stream(), STREAM_SEED)
    assert [question.family for question in questions] == list(FAMILIES)
    for question in questions:
        assert out.count(f"] {question.text}") == 3  # as it goes on; the table has it once more
    assert "[01:04] end: 32 windows" in out and f"{now[2]} of {kept[2]}" in out.split("truth")[1]
    assert (tmp_path / "demo" / "retained.png").stat().st_size > 10_000


def test_answers_of_the_stream_are_marked_right_or_wrong(tmp_path, capsys, monkeypatch):
    """The marks follow from the clip, for any answers."""
    asked = draw_stream_questions(sample_stream(), STREAM_SEED)

    def feed_source(params, state, source, questions, show, *, on_state, **_):
        source.close()
        on_state.retained = [[4], [1, 4]]
        for time, right in ((10.0, True), (64.0, False)):
            for question in asked:
                show(
                    AnswerEvent(time, question.text, question.answer if right else "?", 1, 1.0, 1.0)
                )

    monkeypatch.setattr(demo_command, "feed_source", feed_source)
    monkeypatch.setattr(demo_command, "init_compiled_stream", lambda *_, **__: None)
    stream_demo(tmp_path, None)
    table = capsys.readouterr().out.split("4. The first")[1]
    assert table.count("✗ ?") == len(asked) and "5 of 8" in table
    assert all(table.count(question.answer) >= 2 for question in asked)
