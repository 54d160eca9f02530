"""The code is formatted, free of what ruff finds, and its types agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str) -> None:
    """Run a tool on the repository; what it says is the message of a failure."""
    quiet = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # of newer versions, from afar
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=quiet, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff(command):
    run("ruff", *command)


@pytest.mark.slow  # half a minute; pre-commit runs it at every commit
def test_pyright():
    """Of what pyproject.toml includes; with the interpreter, and so the packages, of the tests."""
    run("pyright", "--pythonpath", sys.executable)
