"""Stream memory: the objects of streams, resuming a run, the tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import streaming_recall as stream_memory
from experiments.streaming_recall_clips import (
    AGES,
    ANSWERS,
    ages_within,
    draw_stream_objects,
    questions_by_age,
)
from experiments.streaming_recall_tables import (
    ages_table,
    differences_table,
    kinds_table,
    plot_memory,
    summarise,
)
from omnizip_jax.testbed.synthetic_clips import COLOURS, SOUNDS, SPEC

SHORT = {"2 s": (1, 4), "15 s": (13, 17)}
WINDOWS, SLOTS = 10, 400


@pytest.mark.parametrize("ages, seconds", [(AGES, 660), (SHORT, 20)])
def test_every_age_has_one_object(ages, seconds):
    silent, slots = [], set()
    for seed in range(200):
        objects, by_age = draw_stream_objects(np.random.default_rng(seed), seconds, ages)
        assert len(objects) == len(ages) + 2
        assert [obj.second for obj in objects] == sorted({obj.second for obj in objects})
        assert objects[0].second >= 0 and objects[-1].second < seconds
        assert len({obj.colour for obj in objects}) == len(objects)
        heard = [obj.sound for obj in objects if obj.sound]
        assert len(set(heard)) == len(heard)
        silent.append(len(objects) - len(heard))
        for age, (near, far) in ages.items():
            inside = [obj for obj in objects if near <= seconds - obj.second <= far]
            assert inside == [by_age[age]] and by_age[age].sound
        slots.add(by_age["2 s"].second)
    assert set(silent) == {0, 1, 2}
    assert slots == {seconds - 4, seconds - 3, seconds - 2, seconds - 1}


def test_every_kind_is_asked_once_about_every_object():
    for seed in range(20):
        objects, by_age = draw_stream_objects(np.random.default_rng(seed), 660, AGES)
        asked = questions_by_age(objects, by_age)
        assert len({question.text for _, question in asked}) == len(asked)
        pairs = [(age, question.kind) for age, question in asked]
        assert sorted(pairs) == sorted((age, kind) for age in AGES for kind in ANSWERS)
        assert list(dict.fromkeys(age for age, _ in asked)) == list(AGES)
        for age, question in asked:
            obj = by_age[age]
            known = (obj.colour, obj.shape, obj.sound, "long" if obj.long else "short")
            assert question.answer in known
            # The question names the object by its colour or by its sound, and no other object.
            names = [*COLOURS, *SOUNDS]
            named = [name for name in names if name in question.text.rstrip("?").split()]
            assert "short" in question.text or named == [name for name in known if name in named]


def test_short_streams_have_low_ages():
    assert list(ages_within(660)) == list(AGES)
    assert list(ages_within(150)) == ["2 s", "30 s", "2 min"]
    with pytest.raises(
        ValueError, match="a stream of 3 s is too short for any age: give at least 4 s"
    ):
        ages_within(3)


@pytest.mark.slow
def test_a_run_resumes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_memory, "SHARES", (0.25,))

    def run(name, streams):
        return stream_memory.measure_to(
            tmp_path / name,
            small,
            streams,
            windows=WINDOWS,
            slots=SLOTS,
            ages=SHORT,
            progress=False,
        )

    lines = run("whole.jsonl", 2)
    names = ["recent, 25%", "fading, 25%", "unbounded, 25%"]
    assert [(line["stream"], line["row"]) for line in lines] == [
        (stream, name) for stream in range(2) for name in names
    ]
    content = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "stopped.jsonl").write_text("".join(content[:3]) + content[3][:20])
    assert run("stopped.jsonl", 2) == lines
    assert (tmp_path / "stopped.jsonl").read_text() == "".join(content)
    # Nothing is measured again.
    monkeypatch.setattr(stream_memory, "make_stream", None)
    assert run("whole.jsonl", 1) == lines[:3]

    for line in lines:
        assert len(line["answers"]) == len(SHORT) * len(ANSWERS)
        assert 0.2 < line["kept"] <= 0.25
        kept = round(line["kept"] * WINDOWS * (SPEC.audio_slots + SPEC.video_slots))
        # The unbounded cache has all tokens and the prompt; the others evicted tokens.
        assert (line["slots"] > kept) == (line["row"] == names[-1])


def _line(stream, row, rights):
    answers = [[age, kind, int(right)] for age, right in rights.items() for kind in ANSWERS]
    return {"stream": stream, "row": row, "kept": 0.25, "slots": 700 + stream, "answers": answers}


def test_tables_and_curves(tmp_path):
    rights = {"recent, 25%": (1, 0), "fading, 25%": (1, 1), "fading, 45%": (1, 1)}
    lines = [
        _line(stream, row, {"2 s": young, "15 s": old})
        for stream in (1, 0)
        for row, (young, old) in rights.items()
    ]
    lines += [_line(s, "unbounded, 25%", {"2 s": 1, "15 s": s}) for s in range(2)]
    summary = summarise(json.loads(json.dumps(lines)))
    assert summary["recent, 25%"]["ages"]["15 s"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert summary["unbounded, 25%"]["ages"]["15 s"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
    assert ages_table(summary).splitlines()[2] == (
        "| recent, 25% | 2 | 25.0% | 700 | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0.0) |"
    )
    # Paired differences, only where an unbounded cache has the same share.
    assert differences_table(summary).splitlines()[2:] == [
        "| recent, 25% | +0.0 (+0.0 to +0.0) | -50.0 (-100.0 to +0.0) |",
        "| fading, 25% | +0.0 (+0.0 to +0.0) | +50.0 (+0.0 to +100.0) |",
    ]
    assert kinds_table(summary["recent, 25%"]).splitlines()[2] == (
        "| colour of sound | 16.7% | 100.0% | 0.0% |"
    )
    axes = plot_memory(summary, SHORT).axes[0]
    assert [line.get_label() for line in axes.lines[:-1]] == list(summary)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[2.5, 1], [15, 0]])
    assert axes.get_xscale() == "log"

    header = {"split": "test", "windows": 10, "slots": 400, "ages": SHORT}
    stream_memory.write_tables(summary, header, tmp_path, "memory")
    text = (tmp_path / "memory_tables.md").read_text()
    assert ages_table(summary) in text and "## fading, 45%, by kind of question" in text
    assert json.loads((tmp_path / "memory.json").read_text())["rows"] == summary
    assert (tmp_path / "memory.png").exists()
