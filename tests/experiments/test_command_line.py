"""The ``--checkpoint`` option and resumable result files."""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import pytest

from experiments.command_line import add_checkpoint, append, resume


def test_a_checkpoint_is_loaded_or_ends_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_checkpoint(parser)
    weights = parser.parse_args([]).checkpoint.weights
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    for wrong, message in (("nowhere", "no such folder"), (str(tmp_path), "omnizip convert")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--checkpoint", wrong])
        assert message in capsys.readouterr().err


def test_a_file_resumes_after_its_last_complete_line(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    assert resume(file, {"split": "test"}) == []
    append(file, {"row": 1})
    whole = file.read_text()
    file.write_text(whole + '{"row"')
    assert resume(file, {"split": "test"}) == [{"row": 1}]
    assert file.read_text() == whole
    with pytest.raises(ValueError, match="other split: choose another folder"):
        resume(file, {"split": "validation"})
    for content in ("hello\n", "", "[]\n"):
        file.write_text(content)
        with pytest.raises(ValueError, match="not a results file"):
            resume(file, {"split": "test"})
