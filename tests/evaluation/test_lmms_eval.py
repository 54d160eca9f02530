"""The model inside the real lmms-eval, in a separate environment: `.ci/lmms_eval`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.evaluation.dataset_runner import group_by_clip
from omnizip_jax.evaluation.lmms import TASKS
from omnizip_jax.evaluation.question_file import read_questions, write_questions
from tests.evaluation.conftest import made_questions, make_evaluator

PYTHON = os.environ.get("LMMS_EVAL_PYTHON", "")
KEEP = 0.25  # low enough for some wrong answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no python with lmms-eval"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms_eval")
    write_questions(made_questions(folder, 5, "hard"), folder / "questions.jsonl")
    return folder


@pytest.fixture(scope="module")
def expected(folder, small):
    """Reply and accuracy of each question from ``omnizip evaluate``."""
    evaluator = make_evaluator(small, {"omnizip": OmniZipConfig(keep=KEEP)}, max_new_tokens=100)
    groups = group_by_clip(read_questions(folder / "questions.jsonl"))
    rows = [row for group in groups for row, _ in evaluator.evaluate(group)]
    print("\n", *(f"{row['id']}: {row['reply']!r} {row['correct']}\n" for row in rows))
    assert {row["correct"] for row in rows} == {True, False}
    return [(row["reply"], float(row["correct"])) for row in rows]


def command(folder: Path, out: str, *launcher: str) -> list[str]:
    return [
        *(PYTHON, "-m", *launcher, "lmms_eval"),
        *("--model", "omnizip_jax", "--batch_size", "1"),
        *("--model_args", f"checkpoint=small,dtype=float32,method=omnizip,keep={KEEP}"),
        *("--tasks", "own_questions_authors", "--include_path", str(TASKS)),
        *("--log_samples", "--output_path", str(folder / out)),
    ]


def environment(folder: Path) -> dict[str, str]:
    own = {
        "OMNIZIP_QUESTIONS": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "LMMS_CACHE_RUN_ID": "one",  # identifies the cache of a killed run
    }
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own


def run(folder: Path, *line: str) -> str:
    done = subprocess.run(
        line, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=1200
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    print(*(line for line in output.splitlines() if re.match(r"\|", line)), sep="\n")
    return output


def replies(folder: Path, out: str) -> list[tuple[str, float]]:
    (file,) = (folder / out).rglob("*samples*.jsonl")
    rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [(row["filtered_resps"], row["accuracy"]) for row in rows]


def test_replies_are_those_of_evaluate(folder, expected):
    output = run(folder, *command(folder, "one"))
    assert replies(folder, "one") == expected
    accuracy = sum(right for _, right in expected) / len(expected)
    (value,) = re.findall(r"\|own_questions_authors\|.*\|accuracy\|\W*([0-9.]+)\|", output)
    assert float(value) == pytest.approx(accuracy, abs=1e-4)
    (kept,) = re.findall(r"\|avg_kept_share *\| *([0-9.]+)\|", output)
    assert float(kept) == pytest.approx(KEEP, abs=0.02)


def test_a_killed_run_is_resumed_from_the_cache(folder, expected):
    line = [*command(folder, "resumed"), "--use_cache", str(folder / "cache")]
    first = subprocess.Popen(
        line,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    ends = time.monotonic() + 1200
    while sum(len(f.read_text().splitlines()) for f in folder.glob("cache/**/*.jsonl")) < 3:
        assert first.poll() is None and time.monotonic() < ends
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    output = run(folder, *line)
    (hits,) = re.findall(r"ResponseCache: (\d+)/\d+ cache hits", output)
    assert int(hits) >= 3
    assert replies(folder, "resumed") == expected


def test_several_processes(folder, expected):
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m")
    run(folder, *command(folder, "two", *launcher))
    assert replies(folder, "two") == expected
