"""A file of questions on many devices and machines: an engine on each, fed by Ray Data.

A batch is the questions about one clip. Its rows depend on nothing else: it does not matter which
engine gets it, when, or how often. Ray Data starts a worker that is lost anew, and gives the
batches that it had to whoever is free.
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
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from omnizip_jax.evaluation.evaluator import Engine, Settings
from omnizip_jax.evaluation.hardware import machine
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Key
from omnizip_jax.evaluation.runner import opened
from omnizip_jax.models.params import Params

LOCAL = "local"  # a cluster of this machine alone, for as long as the run takes
STARTS = 3  # workers in a row that may be lost before they begin

Work = Sequence[tuple[Sequence[Question], Collection[Key]]]  # about a clip; rows that are there


def evaluate_on_cluster(
    outline: Engine,
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
    """Do what ``run.evaluate`` does on all devices of a cluster: the rows are the same bytes.

    Machines must see checkpoint and videos under the same names, and the current folder too.

    Args:
        outline: an engine that is asked nothing; ``load_outline`` gives weights enough for it.
        load: its weights, on the device of the process that calls it.
        questions, out, checkpoint, progress: as for ``evaluate``.
        address: of a Ray cluster, or "local".
        workers: engines; by default one for each GPU, or one for each machine if there are none.
        one_by_one: engines read no clip ahead.

    Raises:
        ValueError: ``out`` belongs to another run, or cannot be written; no cluster is there, or
            it has fewer devices than ``workers``; workers cannot begin.
    """
    with opened(outline, questions, out, checkpoint, progress) as (results, groups, bar):
        if not groups:
            return
        work = [(group, results.done.intersection(outline.keys(group))) for group in groups]
        worker = (load, outline.settings, work, os.getcwd())
        known: list[dict[str, Any]] = []
        with _cluster(address) as devices:
            for answered in _answers(worker, len(work), *devices(workers), 1 if one_by_one else 2):
                where = {**answered["machine"], "date": None}
                if where not in known:
                    known.append(where)
                    results.note({"session": answered["machine"] | {"one by one": one_by_one}})
                for row, times in answered["rows"]:
                    results.append(row, times)
                    bar.update()


class Worker:
    """An engine that stays on its device, as Ray Data's ``map_batches`` calls it.

    Args:
        load: gives the weights.
        settings: of the engine.
        work: questions about each clip, and the rows of theirs that are there.
        folder: that relative paths count from.
    """

    def __init__(self, load: Callable[[], Params], settings: Settings, work: Work, folder: str):
        os.chdir(folder)
        self._engine, self._work = Engine(load(), settings), work
        self._engine.check()
        self._machine = machine()
        self._answering = threading.Lock()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answer the questions about one clip; another call may prepare the next one meanwhile."""
        (number,) = batch["number"]
        questions, done = self._work[number]
        prepared = self._engine.prepare(questions)
        with self._answering:
            rows = list(self._engine.answer(prepared, questions, done))
        return {"answered": [json.dumps({"machine": self._machine, "rows": rows})]}


def _answers(
    worker: tuple[Any, ...], batches: int, count: int, resources: dict[str, float], calls: int
) -> Iterator[dict[str, Any]]:
    """What workers make of the batches, as it comes."""
    import ray.data  # pyright: ignore[reportMissingImports]

    numbers = [{"number": number} for number in range(batches)]
    answers = ray.data.from_items(numbers, override_num_blocks=batches).map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=worker,
        compute=ray.data.ActorPoolStrategy(
            size=min(count, batches),
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        ),
        **resources,
    )
    try:
        for row in answers.iter_rows():
            yield json.loads(row["answered"])
    except ray.exceptions.RayActorError as error:
        raise ValueError(
            f"the workers cannot begin: {error}\nThe rows that came are kept; the same command "
            "goes on from them"
        ) from error


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Callable[[int | None], tuple[int, dict[str, float]]]]:
    """Be part of a cluster; gives what says how many workers it takes, and what each is given."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent from here
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data  # pyright: ignore[reportMissingImports]

    def devices(workers: int | None) -> tuple[int, dict[str, float]]:
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        there = int(resources.get(kind, 0))
        if workers is not None and workers > there:
            raise ValueError(f"{workers} workers: the cluster has {there} {kind}s")
        machines = sum(node["Alive"] for node in ray.nodes())
        count = workers or (there if kind == "GPU" else machines)
        return count, {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(_AboveTheBar()))
        own = {"include_dashboard": False} if address == LOCAL else {}
        try:
            _reach(address)
            with _quiet():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}") from error
        stack.callback(ray.shutdown)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_consecutive_actor_init_deaths = STARTS
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield devices


def _reach(address: str) -> None:
    """Raise ``OSError`` if nobody listens at HOST:PORT: Ray would go on trying."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While Ray starts: no warning that it forks, nothing that its C++ writes to stderr."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


class _AboveTheBar:
    """Where Ray prints that a worker was lost: the first sentence of each line goes to stderr."""

    def write(self, text: str) -> int:
        if text.strip():
            tqdm.write(text.strip().partition(". ")[0], file=sys.stderr)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
