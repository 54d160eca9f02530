"""Copies of the tiny checkpoint that tests may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted checkpoint, to be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "copy"))


@pytest.fixture
def source(released_folder, tmp_path):
    """A copy of the released folder, to be damaged."""
    return Path(shutil.copytree(released_folder, tmp_path / "source"))
