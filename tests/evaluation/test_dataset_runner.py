"""Runs: right answers, the same rows after interruptions, one encoding for all methods."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
import types
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import jax
import numpy as np
import pytest

import omnizip_jax
from experiments.batched_answers import answers, prepare
from omnizip_jax.compression import (
    METHODS,
    AllTokens,
    FastV,
    OmniZipConfig,
    RandomTokens,
    VisionZip,
)
from omnizip_jax.evaluation import clip_evaluator as evaluator_module
from omnizip_jax.evaluation.clip_evaluator import StreamSettings
from omnizip_jax.evaluation.dataset_runner import Cluster, evaluate, group_by_clip
from omnizip_jax.evaluation.hardware import describe_machine
from omnizip_jax.evaluation.question_file import read_questions, write_questions
from omnizip_jax.evaluation.result_files import read_times
from omnizip_jax.evaluation.run_report import summarise
from omnizip_jax.media import load_clip
from tests.evaluation.conftest import made_questions, make_evaluator, rows_of
from tests.forked_command import start_command


@pytest.fixture(scope="module")
def whole(evaluator, questions, tmp_path_factory):
    """The rows of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "results.jsonl"
    evaluate(evaluator, questions, path, checkpoint="small")
    return path


def test_every_question_has_a_row_for_every_method(whole, questions):
    rows = rows_of(whole)
    asked = [(clip[0].video, q.id) for clip in group_by_clip(questions) for q in clip]
    assert len(rows) == 2 * len(questions)
    assert {(row["id"], row["method"]) for row in rows} == {
        (name, method) for _, name in asked for method in ("all", "omnizip")
    }
    for row in rows:
        if row["id"] != "gone":
            counts = row["tokens"]
            kept = counts["audio_kept"] + counts["video_kept"]
            assert row["cost"]["kept"] == kept / (counts["audio"] + counts["video"])
            assert counts["planned"] >= kept
    kept = [row["cost"]["kept"] for row in rows if row["method"] == "omnizip" and row["cost"]]
    assert kept and all(share == pytest.approx(0.45, abs=0.01) for share in kept)


def test_answers_are_those_of_generate(whole, small, questions):
    """Replies and token counts: the evaluator shares the prefill that ``generate`` repeats."""
    rows = {(row["id"], row["method"]): row for row in rows_of(whole)}
    for question in questions[:3]:
        for name, method in {"all": None, "omnizip": OmniZipConfig(keep=0.45)}.items():
            answer = omnizip_jax.generate(
                small, question.video, question.text, compression=method, max_new_tokens=4
            )
            row = rows[question.id, name]
            assert row["reply"] == answer.text
            assert row["tokens"]["text"] == answer.counts.text
            assert row["tokens"]["video_kept"] == answer.counts.video_kept
            assert row["correct"] == (answer.text.strip() == question.answer)


def test_the_small_model_is_right(whole):
    rows = [row for row in rows_of(whole) if row["method"] == "all" and row["id"] != "gone"]
    assert sum(row["correct"] for row in rows) >= len(rows) - 1


def test_a_broken_video_is_a_row_with_its_error(whole):
    gone = [row for row in rows_of(whole) if row["id"] == "gone"]
    assert len(gone) == 2
    for row in gone:
        assert "No such file" in row["error"] and row["reply"] is None and row["correct"] is False


def test_clips_are_encoded_and_prefilled_once(evaluator, questions, tmp_path, monkeypatch):
    calls = {"encode_clip": 0, "read_encoded": 0}

    def count(name: str) -> None:
        call = getattr(evaluator_module, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return call(*args, **kwargs)

        monkeypatch.setattr(evaluator_module, name, counted)

    for name in calls:
        count(name)
    evaluate(evaluator, questions, tmp_path / "results.jsonl")
    assert calls == {"encode_clip": 3, "read_encoded": 6}


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "after", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)]
)
def test_a_stopped_run_is_resumed(evaluator, questions, whole, tmp_path, monkeypatch, after):
    path, answer = tmp_path / "results.jsonl", evaluator.answer

    def stopping(*args):
        for row in answer(*args):
            if path.exists() and len(rows_of(path)) == after:
                raise Stop
            yield row

    monkeypatch.setattr(evaluator, "answer", stopping)
    with pytest.raises(Stop):
        evaluate(evaluator, questions, path, checkpoint="small")
    monkeypatch.setattr(evaluator, "answer", answer)
    assert len(rows_of(path)) == after
    path.write_bytes(path.read_bytes()[:-20])  # the last row is incomplete
    evaluate(evaluator, questions, path, checkpoint="small", one_by_one=True)
    assert path.read_bytes() == whole.read_bytes()
    sessions = [line["session"] for line in read_times(path) if "session" in line]
    assert [session["one by one"] for session in sessions] == [False, True]


def test_a_finished_run_answers_nothing(evaluator, questions, whole, monkeypatch):
    before, times = whole.read_bytes(), read_times(whole)
    monkeypatch.setattr(evaluator, "prepare", None)
    evaluate(evaluator, questions, whole, checkpoint="small")
    assert whole.read_bytes() == before and read_times(whole) == times


def test_more_questions_are_added(evaluator, questions, whole, tmp_path):
    path = tmp_path / "results.jsonl"
    evaluate(evaluator, questions[:2], path)
    evaluate(evaluator, questions, path)
    assert sorted(path.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_other_settings_are_refused(small, questions, whole):
    before = whole.read_bytes()
    other = make_evaluator(small, {"omnizip": OmniZipConfig(keep=0.35)}, max_frames=8)
    with pytest.raises(ValueError, match=r"another run: max_frames null, not 8; methods \{") as e:
        evaluate(other, questions, whole)
    assert '"keep": 0.35' in str(e.value)
    assert whole.read_bytes() == before


@pytest.fixture
def ray(monkeypatch):
    """A stub of Ray: one machine with two CPUs, whose worker runs here, last clip first."""

    class Dataset:
        def __init__(self, items, override_num_blocks):
            assert len(items) == override_num_blocks
            self.items = items

        def map_batches(self, worker, *, batch_size, fn_constructor_args, compute, num_cpus):
            assert (batch_size, compute["size"], num_cpus) == (1, 1, 1)
            called = worker(*fn_constructor_args)
            batches = ({"number": np.array([item["number"]])} for item in reversed(self.items))
            self.outputs = [called(batch)["output"] for batch in batches]
            return self

        def iter_rows(self):
            return ({"output": output} for (output,) in self.outputs)

    context = types.SimpleNamespace(get_current=types.SimpleNamespace)
    stub = types.SimpleNamespace(
        init=lambda address, **_: None,
        shutdown=lambda: None,
        cluster_resources=lambda: {"CPU": 2.0},
        nodes=lambda: [{"Alive": True}],
        exceptions=types.SimpleNamespace(RayActorError=RuntimeError),
        data=types.SimpleNamespace(from_items=Dataset, ActorPoolStrategy=dict, DataContext=context),
    )
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.setitem(sys.modules, "ray.data", stub.data)


def test_a_cluster_gives_the_rows_of_one_process(ray, small, evaluator, questions, whole, tmp_path):
    path = tmp_path / "results.jsonl"
    cluster = Cluster(lambda: small)
    evaluate(evaluator, questions[:2], path, checkpoint="small")
    evaluate(evaluator, questions, path, cluster=cluster, checkpoint="small")
    assert sorted(path.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    sessions = [line["session"] for line in read_times(path) if "session" in line]
    assert len(sessions) == 2
    before = path.read_bytes()
    evaluate(evaluator, questions, path, checkpoint="small")
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="3 workers: the cluster has 2 CPUs"):
        evaluate(
            evaluator, questions, tmp_path / "r.jsonl", cluster=Cluster(lambda: small, workers=3)
        )


def test_methods_that_sample_tokens_have_several_seeds(small):
    methods = {"all": METHODS["all"](), "random": RandomTokens(keep=0.35)}
    runs = make_evaluator(small, methods, seeds=3).settings.runs()
    assert [(name, seed) for name, _, seed in runs] == [
        ("all", 0),
        ("random", 0),
        ("random", 1),
        ("random", 2),
    ]


def test_a_method_with_stages_inside_the_decoder(small, questions, tmp_path, monkeypatch):
    evaluator = make_evaluator(small, {"fastv": METHODS["fastv"]()})
    with monkeypatch.context() as patch:
        patch.setattr(
            "omnizip_jax.inference.prefill.encode_clip", None
        )  # the clip's one encoding serves all
        evaluate(evaluator, questions[:1], tmp_path / "results.jsonl")
    (row,) = rows_of(tmp_path / "results.jsonl")
    answer = omnizip_jax.generate(
        small,
        questions[0].video,
        questions[0].text,
        compression=METHODS["fastv"](),
        max_new_tokens=4,
    )
    assert row["reply"] == answer.text
    assert row["cost"]["by_layer"] < row["cost"]["kept"] == 1


@pytest.mark.slow
def test_batched_answers_agree(small, questions):
    """For each question; the batched programs of ``experiments`` read many clips at once."""
    methods = {"all": AllTokens(), "omnizip": OmniZipConfig(keep=0.2), "fastv": FastV(keep=0.3)}
    groups = [group for group in group_by_clip(questions) if group[0].id != "gone"]
    evaluator = make_evaluator(small, methods)
    replied = {
        (row["id"], row["method"]): row["reply"].split()[0]
        for group in groups
        for row, _ in evaluator.evaluate(group)
    }
    clips = [load_clip(group[0].video, small.config.spec).windows for group in groups]
    asked = prepare(small, clips, [[question.text for question in group] for group in groups])
    for name, method in methods.items():
        tokens = answers(small, asked, method, seeds=[0] * len(groups)).tokens
        for group, of_clip in zip(groups, tokens, strict=True):
            for question, token in zip(group, of_clip, strict=True):
                assert replied[question.id, name] == small.tokenizer.decode([token]).strip()
    assert (
        len({replied[question.id, name] for g in groups for question in g for name in methods}) > 3
    )


@pytest.mark.slow
def test_clips_as_streams(small, questions, whole):
    """Without eviction a stream gives the answers of the whole clip."""
    stream = StreamSettings("fading", 2048)
    evaluator = make_evaluator(small, {"all": AllTokens()}, stream=stream)
    group = group_by_clip(questions)[0]
    expected = {row["id"]: row for row in rows_of(whole) if row["method"] == "all"}
    for row, _ in evaluator.evaluate(group):
        assert row["reply"] == expected[row["id"]]["reply"]
        assert row["tokens"] == expected[row["id"]]["tokens"]
    assert evaluator.describe()["stream"] == {"memory": "fading", "capacity": 2048}
    small_cache = make_evaluator(small, {"all": AllTokens()}, stream=StreamSettings("recent", 800))
    (row, _), *_ = small_cache.evaluate(group)
    assert row["error"] is None and row["tokens"]["video"] == expected[row["id"]]["tokens"]["video"]


def test_a_stream_is_fed_window_by_window(small, questions, monkeypatch):
    """Once for all questions about a clip; the model itself runs in the slow tier."""
    evaluator = make_evaluator(small, {"all": AllTokens()}, stream=StreamSettings("fading", 2048))
    group = group_by_clip(questions)[0]
    fed, asked = [], []

    def init_stream(params, method, **settings):
        assert (settings["memory"], settings["capacity"]) == ("fading", 2048)
        assert settings["spec"] == small.config.spec and settings["audio"] and settings["video"]

    def feed(params, context, window):
        fed.append(window)
        return context

    def ask_context(params, context, question, **sampling_params):
        asked.append(question)
        raise ValueError("not asked")

    for stub in (init_stream, feed, ask_context):
        monkeypatch.setattr(evaluator_module, stub.__name__, stub)
    assert [row["error"] for row, _ in evaluator.evaluate(group)] == ["not asked"] * len(group)
    assert asked == [question.text for question in group]
    clip = load_clip(group[0].video, small.config.spec)
    assert len(fed) == len(clip.windows.mel_length) == 4
    for number, window in enumerate(fed):
        np.testing.assert_array_equal(window.mel, clip.windows.mel[number])


def test_streams_that_are_refused(small):
    stream = StreamSettings("fading", 2048)
    for method, message in ((FastV(), "does not support streams"), (VisionZip(), "whole clip")):
        with pytest.raises(ValueError, match=message):
            make_evaluator(small, {"it": method}, stream=stream).check()
    with pytest.raises(ValueError, match="raise capacity to at least"):
        make_evaluator(small, {"all": AllTokens()}, stream=StreamSettings("recent", 400)).check()


def test_every_method_has_the_encoder_time_of_its_own_features(small, questions, monkeypatch):
    """VisionZip needs features of the vision encoder; other methods do not wait for them."""
    methods = {"all": AllTokens(), "visionzip": VisionZip(keep=0.45)}
    evaluator, group = make_evaluator(small, methods), group_by_clip(questions)[0]
    wanted = []

    def encode_clip(params, windows, wants):
        wanted.append(wants)
        time.sleep(0.5 * bool(wants))
        return np.zeros(1)

    monkeypatch.setattr(evaluator_module, "encode_clip", encode_clip)
    encodings = evaluator.prepare(group).encodings
    assert wanted == [AllTokens.wants, VisionZip.wants] and VisionZip.wants
    assert encodings[AllTokens.wants].seconds < 0.5 <= encodings[VisionZip.wants].seconds


def test_a_run_resumed_under_other_versions_warns(evaluator, questions, tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    evaluate(evaluator, questions[3:4], path)  # its video is missing: nothing is computed
    machine = describe_machine()
    machine["versions"] = machine["versions"] | {"jax": "9.9"}
    monkeypatch.setattr("omnizip_jax.evaluation.dataset_runner.describe_machine", lambda: machine)
    with pytest.warns(UserWarning, match=r"rows of several sessions with jax .*, 9\.9"):
        gone = dataclasses.replace(questions[3], id="2", columns=questions[3].columns | {"id": "2"})
        evaluate(evaluator, [questions[3], gone], path)
    (remark,) = summarise(path)["remarks"]
    assert remark.startswith("rows of several sessions with jax ") and remark.endswith(", 9.9")


@pytest.mark.parametrize("stage", ["encode_clip", "read_encoded", "ask_context"])
def test_out_of_memory_is_a_row_with_its_error(small, questions, monkeypatch, stage):
    evaluator, group = make_evaluator(small, {"all": AllTokens()}), group_by_clip(questions)[0]

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(error)

    monkeypatch.setattr(evaluator_module, stage, fail)
    error = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"
    for row, _ in evaluator.evaluate(group):
        assert row["error"].startswith("4 windows do not fit into the device's memory: read fewer")
    error = "INTERNAL: a bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        list(evaluator.evaluate(group))


def test_parts_of_a_video(small, folder, questions, tmp_path):
    evaluator = make_evaluator(small, {"all": AllTokens()}, stream=StreamSettings())
    columns = questions[0].columns | {"video": str(folder / "0.mp4")}
    parts = [columns | {"id": str(end), "end": end} for end in (2.0, 4.0)]
    write_questions(parts, tmp_path / "q.jsonl")
    clips = [
        evaluator.prepare(group).clip
        for group in group_by_clip(read_questions(tmp_path / "q.jsonl"))
    ]
    assert [len(clip.windows.mel_length) for clip in clips] == [1, 2]


@pytest.mark.slow
def test_ten_kills_give_the_same_bytes(folder, tmp_path):
    """The command killed at random moments, against an uninterrupted one."""
    questions = tmp_path / "questions.jsonl"
    write_questions(
        [q | {"video": str(folder / q["video"])} for q in made_questions(folder, clips=12)],
        questions,
    )
    alone, killed = tmp_path / "alone.jsonl", tmp_path / "killed.jsonl"

    def start(out: Path) -> ForkServerProcess:
        words = "--checkpoint", "small", "--compare", "all", "random:keep=0.35"
        shown = Path(os.devnull)
        return start_command(
            "evaluate", str(questions), "--out", str(out), *words, out=shown, err=shown
        )

    def code(process: ForkServerProcess) -> int | None:
        process.join()
        return process.exitcode

    assert code(start(alone)) == 0
    took = min(_seconds(alone), 30.0)
    chance, kills = random.Random(0), 0
    while kills < 10:
        process = start(killed)
        while not killed.exists() and process.is_alive():
            time.sleep(0.05)
        time.sleep(chance.uniform(0, took / 8))
        if process.is_alive():
            process.kill()
            kills += 1
        elif json.loads(killed.read_text().splitlines()[-1]):
            break  # it finished first
        process.join()
    assert kills >= 5 and code(start(killed)) == 0
    assert killed.read_bytes() == alone.read_bytes()


def _seconds(path: Path) -> float:
    times = [line["seconds"] for line in read_times(path) if "seconds" in line]
    return sum(line["prefill"] + line["decoding"] for line in times)
