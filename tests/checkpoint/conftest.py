"""One conversion of the tiny checkpoint, shared, and copies of it that tests may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from omnizip_jax.cli.main import main


@pytest.fixture(scope="session")
def converted(released_folder, tmp_path_factory):
    """The converted checkpoint; do not change it."""
    target = tmp_path_factory.mktemp("converted") / "model"
    assert main(["convert", str(released_folder), str(target)]) == 0
    return target


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted checkpoint, to be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "copy"))


@pytest.fixture
def source(released_folder, tmp_path):
    """A copy of the released folder, to be damaged."""
    return Path(shutil.copytree(released_folder, tmp_path / "source"))
