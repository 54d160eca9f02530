"""A run on a local Ray cluster of two workers gives the rows of one process."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path

import psutil
import pytest

from omnizip_jax.checkpoint.load import load, load_outline
from omnizip_jax.compression import METHODS, OmniZipConfig
from omnizip_jax.evaluation.dataset_runner import Cluster, evaluate
from omnizip_jax.evaluation.question_file import read_questions, write_questions
from omnizip_jax.evaluation.result_files import read_rows, read_times
from tests.evaluation.conftest import made_questions, make_evaluator

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")

pytestmark = pytest.mark.slow
METHOD = {"all": METHODS["all"](), "omnizip": OmniZipConfig(keep=0.45)}
LOAD = functools.partial(load, "small", "float32")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Eight clips, and one that is not there."""
    folder = tmp_path_factory.mktemp("cluster")
    questions = made_questions(folder, 8)
    questions.insert(3, {"id": "gone", "video": "gone.mp4", "question": "Why?", "answer": "no"})
    write_questions(questions, folder / "questions.jsonl")
    return read_questions(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def whole(small, asked, tmp_path_factory):
    """The rows of one process."""
    path = tmp_path_factory.mktemp("one") / "results.jsonl"
    evaluate(make_evaluator(small, METHOD), asked, path, checkpoint="small")
    return path


@pytest.fixture
def outline(cache_folder):
    return make_evaluator(load_outline("small", "float32"), METHOD)


def workers() -> list[psutil.Process]:
    """The actors that this process's cluster runs."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any(part.startswith("ray::MapWorker") for part in child.cmdline())
    ]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def test_rows_after_a_worker_is_killed(asked, whole, outline, tmp_path):
    path = tmp_path / "results.jsonl"
    killed = []

    def kill() -> None:
        while not lines_of(path):
            time.sleep(0.02)
        running = workers()
        killed.append((len(running), len(lines_of(path))))
        running[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    evaluate(outline, asked, path, cluster=Cluster(LOAD, workers=2), checkpoint="small")
    thread.join()
    ((running, written),) = killed
    assert running == 2 and written < len(read_rows(whole))
    assert sorted(lines_of(path)) == sorted(lines_of(whole))
    run = [file.with_suffix(".run.json").read_bytes() for file in (path, whole)]
    assert run[0] == run[1]
    sessions = [line["session"] for line in read_times(path) if "session" in line]
    assert len(sessions) == 1 and sessions[0]["one by one"] is False


def test_a_run_of_one_process_is_resumed_on_a_cluster(asked, whole, outline, tmp_path):
    """With its first 40 rows, a partial line, and its last rows."""
    path = tmp_path / "results.jsonl"
    lines = lines_of(whole)
    path.write_bytes(b"".join(lines[-2:] + lines[:40]) + lines[40][:9])
    path.with_suffix(".run.json").write_bytes(whole.with_suffix(".run.json").read_bytes())
    cluster = Cluster(LOAD)
    evaluate(outline, asked, path, cluster=cluster, checkpoint="small", one_by_one=True)
    assert sorted(lines_of(path)) == sorted(lines)
    timed = [line for line in read_times(path) if "session" not in line]
    assert len(timed) == len(lines) - 42


def test_no_such_cluster(asked, outline, tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match=r"no Ray cluster at 127\.0\.0\.1:9: .*refused"):
        evaluate(outline, asked, path, cluster=Cluster(LOAD, "127.0.0.1:9"))
    with pytest.raises(ValueError, match="1000 workers: the cluster has"):
        evaluate(outline, asked, path, cluster=Cluster(LOAD, workers=1000))
