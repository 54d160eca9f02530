"""Runs over a file of questions: in this process, or on the devices of a Ray cluster.

The unit of work is the questions about one clip. Its rows depend on nothing else, so clips may be
evaluated in any order, by any process, and repeatedly.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from omnizip_jax.evaluation.evaluator import EvaluationSettings, Evaluator, PreparedClip
from omnizip_jax.evaluation.hardware import describe_machine
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Key, ResultFiles
from omnizip_jax.models.params import Params

LOCAL = "local"  # a Ray cluster of this machine alone, for the duration of the run
START_FAILURES = 3  # consecutive workers that may die before they are ready

Work = Sequence[tuple[Sequence[Question], Collection[Key]]]  # about a clip; keys of existing rows


def evaluate(
    evaluator: Evaluator,
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    *,
    checkpoint: str = "",
    one_by_one: bool = False,
    progress: bool = False,
) -> None:
    """Answer all questions that have no row yet, and append their rows.

    An interrupted run is resumed by the same call, with the same rows. A clip that cannot be read
    gives rows with its error; delete them to try again.

    Args:
        out: the rows, ``NAME.jsonl``; ``NAME.run.json`` and ``NAME.times.jsonl`` are beside it.
        checkpoint: path of the weights, recorded in ``NAME.run.json``.
        one_by_one: do not prepare the next clip while questions are answered: slower, but stages
            do not disturb each other's times.
        progress: show a progress bar.

    Raises:
        ValueError: ``out`` belongs to another run, or cannot be written; a method cannot follow a
            stream.
    """
    evaluator.check()
    with _open_run(evaluator, questions, out, checkpoint, progress) as (results, groups, bar):
        if groups:
            results.append_times({"session": describe_machine() | {"one by one": one_by_one}})
        with contextlib.closing(_prepared(evaluator, groups, one_by_one)) as clips:
            for group, clip in zip(groups, clips, strict=True):
                for row, times in evaluator.answer(clip, group, results.done):
                    results.append(row, times)
                    bar.update()


def evaluate_on_cluster(
    evaluator: Evaluator,
    load: Callable[[], Params],
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    *,
    address: str = LOCAL,
    workers: int | None = None,
    checkpoint: str = "",
    one_by_one: bool = False,
    progress: bool = False,
) -> None:
    """``evaluate`` on all devices of a Ray cluster: the same rows, in the order of completion.

    All machines must see the checkpoint, the videos and the current folder under the same paths.

    Args:
        evaluator: describes the run; the weights of ``load_outline`` suffice.
        load: loads the weights in a worker.
        questions, out, checkpoint, progress: as for ``evaluate``.
        address: of a Ray cluster, or "local".
        workers: number of workers; by default one per GPU, or one per machine without GPUs.
        one_by_one: workers do not prepare the next clip.

    Raises:
        ValueError: ``out`` belongs to another run, or cannot be written; there is no cluster, or
            it has fewer devices than ``workers``; workers cannot start.
    """
    with _open_run(evaluator, questions, out, checkpoint, progress) as (results, groups, bar):
        if not groups:
            return
        work = [(group, results.done.intersection(evaluator.keys(group))) for group in groups]
        arguments = (load, evaluator.settings, work, os.getcwd())
        known: list[dict[str, Any]] = []
        with _cluster(address) as devices:
            count, resources = devices(workers)
            calls = 1 if one_by_one else 2
            for output in _outputs(arguments, len(work), count, resources, calls):
                machine = output["machine"]
                if (where := {**machine, "date": None}) not in known:
                    known.append(where)
                    results.append_times({"session": machine | {"one by one": one_by_one}})
                for row, times in output["rows"]:
                    results.append(row, times)
                    bar.update()


@contextlib.contextmanager
def _open_run(
    evaluator: Evaluator,
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    checkpoint: str,
    progress: bool,
) -> Iterator[tuple[ResultFiles, list[list[Question]], tqdm]]:
    """The files of a run, the clips that lack rows, and a progress bar that counts rows."""
    groups = {tuple(evaluator.keys(group)): group for group in group_by_clip(questions)}
    keys = [key for of_group in groups for key in of_group]
    run = {"checkpoint": checkpoint, **evaluator.describe()}
    with ResultFiles(out, run, questions) as results:
        done = len(results.done.intersection(keys))
        left = [
            group for of_group, group in groups.items() if not results.done.issuperset(of_group)
        ]
        with tqdm(total=len(keys), initial=done, unit="question", disable=not progress) as bar:
            yield results, left, bar


def group_by_clip(questions: Sequence[Question]) -> list[list[Question]]:
    """Groups of questions about the same clip, in the order of their first question."""
    groups: dict[tuple[str, float, float | None], list[Question]] = {}
    for question in questions:
        groups.setdefault(question.clip, []).append(question)
    return list(groups.values())


def _prepared(
    evaluator: Evaluator, groups: Sequence[Sequence[Question]], one_by_one: bool
) -> Generator[PreparedClip]:
    """The clip of each group; by default the next one is prepared while this one is in use."""
    if one_by_one:
        yield from map(evaluator.prepare, groups)
        return
    with ThreadPoolExecutor(1, "clips") as thread:
        following = None
        for group in [*groups, None]:
            ready, following = following, group and thread.submit(evaluator.prepare, group)
            if ready is not None:
                yield ready.result()


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


def _outputs(
    arguments: tuple[Any, ...], clips: int, workers: int, resources: dict[str, float], calls: int
) -> Iterator[dict[str, Any]]:
    """The outputs of workers in the order of completion; Ray Data restarts workers that die."""
    import ray.data  # pyright: ignore[reportMissingImports]

    numbers = [{"number": number} for number in range(clips)]
    outputs = ray.data.from_items(numbers, override_num_blocks=clips).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, clips),
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        ),
        **resources,
    )
    try:
        for row in outputs.iter_rows():
            yield json.loads(row["output"])
    except ray.exceptions.RayActorError as error:
        raise ValueError(
            f"the workers cannot start: {error}\nThe rows written so far are kept; the same "
            "command resumes the run"
        ) from error


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Callable[[int | None], tuple[int, dict[str, float]]]]:
    """Join a cluster; gives a function from requested workers to workers and their resources."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data  # pyright: ignore[reportMissingImports]

    def devices(workers: int | None) -> tuple[int, dict[str, float]]:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        available = int(resources.get(kind, 0))
        if workers is not None and workers > available:
            raise ValueError(f"{workers} workers: the cluster has {available} {kind}s")
        machines = sum(node["Alive"] for node in ray.nodes())
        count = workers or (available if kind == "GPU" else machines)
        return count, {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}

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
            yield devices
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ``OSError`` if HOST:PORT refuses connections: Ray would retry for long."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
