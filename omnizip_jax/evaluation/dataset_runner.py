"""Runs over a file of questions: in this process, or on the devices of a Ray cluster.

The unit of work is the questions about one clip. Its rows depend on nothing else, so clips may be
evaluated in any order, by any process, and repeatedly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from omnizip_jax.evaluation.clip_evaluator import EvaluationSettings, Evaluator, Row, Times
from omnizip_jax.evaluation.hardware import describe_machine
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import (
    Key,
    ResultFiles,
    read_times,
    session_remarks,
)
from omnizip_jax.models.loaded_model import Params

LOCAL = "local"  # a Ray cluster of this machine alone, for the duration of the run
START_FAILURES = 3  # consecutive workers that may die before they are ready

Work = Sequence[tuple[Sequence[Question], Collection[Key]]]  # about a clip; keys of existing rows
Output = tuple[dict[str, Any], Iterable[tuple[Row, Times]]]  # machine and rows of a clip


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A Ray cluster whose machines see checkpoint, videos and current folder under the same paths.

    Attributes:
        load: loads the weights in a worker.
        address: of the cluster, or "local".
        workers: number of workers; by default one per GPU, or one per machine without GPUs.
    """

    load: Callable[[], Params]
    address: str = LOCAL
    workers: int | None = None


def evaluate(
    evaluator: Evaluator,
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    *,
    cluster: Cluster | None = None,
    checkpoint: str = "",
    one_by_one: bool = False,
    progress: bool = False,
) -> None:
    """Answer all questions that have no row yet, and append their rows.

    An interrupted run is resumed by the same call, with the same rows. A clip that cannot be read
    gives rows with its error; delete them to try again.

    Args:
        evaluator: answers the questions. On a cluster it describes the run, and the weights of
            ``load_outline`` suffice.
        out: the rows, ``NAME.jsonl``; ``NAME.run.json`` and ``NAME.times.jsonl`` are beside it.
        cluster: its devices answer, and rows have the order of completion; None is this process.
        checkpoint: path of the weights, recorded in ``NAME.run.json``.
        one_by_one: do not prepare the next clip while questions are answered: slower, but stages
            do not disturb each other's times.
        progress: show a progress bar.

    Raises:
        ValueError: ``out`` belongs to another run, or cannot be written; a method cannot follow a
            stream; there is no cluster, it has too few devices, or its workers cannot start.
    """
    if cluster is None:
        evaluator.check()
    groups = [(group, evaluator.keys(group)) for group in group_by_clip(questions)]
    total = sum(len(keys) for _, keys in groups)
    asked = {"questions": len(questions), "runs": len(evaluator.settings.runs())}
    run = {"checkpoint": checkpoint, **asked, **evaluator.describe()}
    with ResultFiles(out, run, questions) as results:
        work = [
            (group, results.done.intersection(keys))
            for group, keys in groups
            if not results.done.issuperset(keys)
        ]
        missing = sum(len(evaluator.keys(group)) - len(done) for group, done in work)
        if cluster is None:
            outputs = _in_process(evaluator, work, one_by_one)
        else:
            outputs = _on_cluster(evaluator.settings, work, cluster, one_by_one)
        bar = tqdm(total=total, initial=total - missing, unit="question", disable=not progress)
        known: list[dict[str, Any]] = []
        with contextlib.closing(outputs), bar:
            for machine, rows in outputs if work else ():
                if (where := {**machine, "date": None}) not in known:
                    known.append(where)
                    results.times.append({"session": machine | {"one by one": one_by_one}})
                    for remark in session_remarks(read_times(out)):
                        warnings.warn(f"{out}: {remark}", stacklevel=2)
                for row, times in rows:
                    results.append(row)
                    results.times.append(times)
                    bar.update()


def group_by_clip(questions: Sequence[Question]) -> list[list[Question]]:
    """Groups of questions about the same clip, in the order of their first question."""
    groups: dict[tuple[str, float, float | None], list[Question]] = {}
    for question in questions:
        groups.setdefault(question.clip, []).append(question)
    return list(groups.values())


def _in_process(evaluator: Evaluator, work: Work, one_by_one: bool) -> Generator[Output]:
    """Outputs in order; by default the next clip is prepared while questions are answered."""
    machine = describe_machine()
    with ThreadPoolExecutor(1, "clips") as thread:
        following = None
        for number, (group, done) in enumerate(work):
            prepared = following.result() if following else evaluator.prepare(group)
            if not one_by_one and number + 1 < len(work):
                following = thread.submit(evaluator.prepare, work[number + 1][0])
            yield machine, evaluator.answer(prepared, group, done)


class Worker:
    """An evaluator on one device, called by Ray Data's ``map_batches``.

    Args:
        load: loads the weights.
        work: questions about each clip, and the keys of their existing rows.
        folder: working directory, to which relative paths refer.
    """

    def __init__(
        self, load: Callable[[], Params], settings: EvaluationSettings, work: Work, folder: str
    ):
        os.chdir(folder)
        self._evaluator, self._work = Evaluator(load(), settings), work
        self._evaluator.check()
        self._machine = describe_machine()
        self._answering = threading.Lock()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answer the questions about one clip; a concurrent call may prepare the next clip."""
        (number,) = batch["number"]
        questions, done = self._work[number]
        prepared = self._evaluator.prepare(questions)
        with self._answering:
            rows = list(self._evaluator.answer(prepared, questions, done))
        return {"output": [json.dumps({"machine": self._machine, "rows": rows})]}


def _on_cluster(
    settings: EvaluationSettings, work: Work, cluster: Cluster, one_by_one: bool
) -> Generator[Output]:
    """Outputs in the order of completion; Ray Data restarts workers that die."""
    calls = 1 if one_by_one else 2
    numbers = [{"number": number} for number in range(len(work))]
    with _joined(cluster.address):
        import ray.data  # pyright: ignore[reportMissingImports]

        workers, resources = _resources(cluster.workers)
        outputs = ray.data.from_items(numbers, override_num_blocks=len(work)).map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(cluster.load, settings, work, os.getcwd()),
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(work)),
                max_tasks_in_flight_per_actor=calls,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            **resources,
        )
        try:
            for row in outputs.iter_rows():
                output = json.loads(row["output"])
                yield output["machine"], output["rows"]
        except ray.exceptions.RayActorError as error:
            raise ValueError(
                f"the workers cannot start: {error}\nThe rows written so far are kept; the same "
                "command resumes the run"
            ) from error


def _resources(workers: int | None) -> tuple[int, dict[str, float]]:
    """The number of workers, and the resources of each."""
    import ray  # pyright: ignore[reportMissingImports]

    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    available = int(resources.get(kind, 0))
    if workers is not None and workers > available:
        raise ValueError(f"{workers} workers: the cluster has {available} {kind}s")
    machines = sum(node["Alive"] for node in ray.nodes())
    count = workers or (available if kind == "GPU" else machines)
    return count, {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Start or join a cluster, and leave it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry; read on import
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data  # pyright: ignore[reportMissingImports]

    # Ray prints on stdout, which is for the report, that a worker was lost.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
        own = {"include_dashboard": False} if address == LOCAL else {}
        try:
            _check_reachable(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}") from error
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.max_consecutive_actor_init_deaths = START_FAILURES
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ``OSError`` if HOST:PORT refuses connections: Ray would retry for long."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
