"""The ``omnizip`` command in processes that are forked after its imports."""

from __future__ import annotations

import functools
import multiprocessing
import os
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from omnizip_jax.cli.main import main, run_process

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [__name__, *(f"omnizip_jax.cli.{name}_command" for name in ("demo", "evaluate", "stream"))]
)


def start_command(*words: str, out: Path, err: Path) -> ForkServerProcess:
    """Start a command; its stdout and stderr are files."""
    process = _FORKS.Process(target=_run, args=(words, out, err))
    process.start()
    return process


def _run(words: tuple[str, ...], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    run_process(functools.partial(main, words))
