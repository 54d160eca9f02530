"""A run on a local Ray cluster of two workers: the rows of one process, whoever is killed."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path

import psutil
import pytest

from omnizip_jax.checkpoint.load import load, load_outline
from omnizip_jax.compression import METHODS, OmniZipConfig
from omnizip_jax.evaluation.cluster import evaluate_on_cluster
from omnizip_jax.evaluation.question_file import read_questions, write_questions
from omnizip_jax.evaluation.result_files import read_rows, read_times
from omnizip_jax.evaluation.runner import evaluate
from tests.evaluation.conftest import made_questions, make_engine

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
    evaluate(make_engine(small, METHOD), asked, path, checkpoint="small")
    return path


@pytest.fixture
def outline(cache_folder):
    return make_engine(load_outline("small", "float32"), METHOD)


def workers() -> list[psutil.Process]:
    """The actors that this process's cluster runs."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if any(part.startswith("ray::MapWorker") for part in child.cmdline())
    ]


def came(path: Path) -> int:
    """Rows on the disk, in their turn or before it."""
    files = (path, path.with_suffix(".early.jsonl"))
    return sum(len(file.read_bytes().splitlines()) for file in files if file.exists())


def test_a_killed_worker_costs_its_batches_only(asked, whole, outline, tmp_path):
    path = tmp_path / "results.jsonl"
    killed = []

    def kill() -> None:
        while not came(path):
            time.sleep(0.02)
        at_work = workers()
        killed.append((len(at_work), came(path)))
        at_work[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    evaluate_on_cluster(outline, LOAD, asked, path, workers=2, checkpoint="small")
    thread.join()
    ((at_work, there),) = killed
    assert at_work == 2 and there < len(read_rows(whole))
    assert path.read_bytes() == whole.read_bytes()
    run = [file.with_suffix(".run.json").read_bytes() for file in (path, whole)]
    assert run[0] == run[1]
    assert not path.with_suffix(".early.jsonl").exists()
    sessions = [line["session"] for line in read_times(path) if "session" in line]
    assert len(sessions) == 1 and sessions[0]["one by one"] is False


def test_a_stopped_run_goes_on_elsewhere(asked, whole, outline, tmp_path):
    """With what one process has written, and what came before its turn."""
    path = tmp_path / "results.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:40]) + lines[40][:9])
    path.with_suffix(".early.jsonl").write_bytes(b"".join(lines[-2:]))
    path.with_suffix(".run.json").write_bytes(whole.with_suffix(".run.json").read_bytes())
    evaluate_on_cluster(outline, LOAD, asked, path, checkpoint="small", one_by_one=True)
    assert path.read_bytes() == whole.read_bytes()
    timed = [line for line in read_times(path) if "session" not in line]
    assert len(timed) == len(lines) - 42


def test_no_such_cluster(asked, outline, tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match=r"no Ray cluster at 127\.0\.0\.1:9: .*refused"):
        evaluate_on_cluster(outline, LOAD, asked, path, address="127.0.0.1:9")
    with pytest.raises(ValueError, match="1000 workers: the cluster has"):
        evaluate_on_cluster(outline, LOAD, asked, path, workers=1000)
