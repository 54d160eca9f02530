"""Every notebook runs from top to bottom, and equals its text source."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

SOURCES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_both_forms_are_equal(source):
    text = jupytext.read(source)
    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in text.cells], (
        f"`jupytext --to ipynb {source.name}` and run it: the two forms differ"
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(source, tmp_path):
    text = jupytext.read(source)
    kernel = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(text, timeout=300, kernel_name="python3", resources=kernel).execute()
