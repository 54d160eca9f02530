"""Checkpoints with quantised weights, from the released files to answers."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load, load_outline
from omnizip_jax.checkpoint.safetensors_index import ConversionError
from omnizip_jax.cli.main import main
from omnizip_jax.models.loaded_model import precision, weights_fingerprint
from omnizip_jax.models.quantized import is_quantized, quantize


def by_name(weights):
    leaves = jax.tree_util.tree_leaves_with_path(weights, is_leaf=is_quantized)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request, released_folder, tmp_path_factory):
    """A folder in 8 or 4 bits, its type, and the report."""
    target = tmp_path_factory.mktemp(request.param) / "model"
    return target, request.param, convert(released_folder, target, request.param)


def test_the_decoders_matrices_are_quantised_and_nothing_else(quantized, converted):
    folder, dtype, report = quantized
    params, plain = load(folder, "float32", verify=True), load(converted, "float32")
    assert precision(params.weights) == dtype and params.dtype == np.float32
    expected = by_name(plain.weights)
    for name, leaf in by_name(params.weights).items():
        matrix = name.startswith("text/layers/") and name.endswith("_proj/weight")
        assert is_quantized(leaf) == matrix
        if matrix:
            own, _ = quantize(np.asarray(expected[name]), leaf.bits)
            jax.tree.map(np.testing.assert_array_equal, leaf, own)
            error = np.asarray(leaf.dequantize()) - expected[name]
            relative = np.sqrt(np.mean(error**2) / np.mean(np.square(expected[name])))
            assert f"{name}, relative error {relative:.2%}" in report
        else:
            np.testing.assert_array_equal(leaf, expected[name])
    assert params.fingerprint != plain.fingerprint


def test_the_checkpoint_is_smaller_and_identified_by_its_values(quantized, converted):
    folder, _, report = quantized
    params = load(folder)
    assert params.dtype == load(converted).dtype
    copied = params.replace(weights=jax.tree.map(lambda x: x.copy(), params.weights))
    assert weights_fingerprint(copied) == params.fingerprint
    outline = load_outline(folder)
    assert jax.tree.structure(outline.weights) == jax.tree.structure(params.weights)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params.weights))
    assert f"{size / 1e9:.2f} GB" in report
    assert size < sum(leaf.nbytes for leaf in jax.tree.leaves(load(converted).weights))


def test_everything_else_has_8_bits_on_request(released_folder, tmp_path, capsys):
    target = tmp_path / "model"
    arguments = ["--dtype", "int4", "--quantize-all"]
    assert main(["convert", str(released_folder), str(target), *arguments]) == 0
    leaves = by_name(load(target).weights)
    bits = {name: leaf.bits for name, leaf in leaves.items() if is_quantized(leaf)}
    assert bits["text/embed_tokens/embedding"] == bits["audio/layers/fc1/weight"] == 8
    assert bits["text/layers/mlp/up_proj/weight"] == bits["text/lm_head/weight"] == 4
    assert all(re.search("scale|bias|kernel", name) for name in leaves.keys() - bits.keys())
    assert "vision: relative error of at most" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_quantising_all_needs_a_quantised_type(released_folder, tmp_path, dtype):
    with pytest.raises(ValueError, match="quantize_all needs dtype int8 or int4"):
        convert(released_folder, tmp_path / "out", dtype, quantize_all=True)


def test_loading_does_not_quantise(converted, quantized):
    for folder in (converted, quantized[0]):
        with pytest.raises(ValueError, match=r"one of bfloat16, float32, got 'int8'; .*--dtype"):
            load(folder, "int8")


def test_a_quantised_checkpoint_is_not_converted_again(quantized, tmp_path):
    with pytest.raises(ConversionError, match="converted already"):
        convert(quantized[0], tmp_path / "again", "int8")


def test_weights_that_are_not_finite(source, tmp_path):
    name = "thinker.model.layers.0.mlp.up_proj.weight"
    file = next(file for file in source.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    tensors[name][3, :2] = np.nan
    save_file(tensors, file)
    with pytest.raises(ConversionError, match=rf"{name}: 2 of \d+ values"):
        convert(source, tmp_path / "out", "int8")
