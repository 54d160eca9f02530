"""What the testbed's commands are given."""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import pytest

from experiments.commands import add_checkpoint


def test_a_checkpoint_is_loaded_or_ends_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_checkpoint(parser)
    weights = parser.parse_args([]).checkpoint.weights
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    for wrong, message in (("nowhere", "no such folder"), (str(tmp_path), "omnizip convert")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--checkpoint", wrong])
        assert message in capsys.readouterr().err
