"""Conversion and loading of experts, each a released tensor: a tiny Qwen3-Omni."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.safetensors_index import ConversionError
from omnizip_jax.models.loaded_model import weights_fingerprint
from omnizip_jax.models.quantized import is_quantized, quantize
from omnizip_jax.testbed.random_checkpoint import write_random_checkpoint

LAYERS, EXPERTS = 4, 8
MATRICES = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("released") / "tiny")


@pytest.fixture(
    scope="module",
    params=["bfloat16", *(pytest.param(each, marks=pytest.mark.slow) for each in ("int8", "int4"))],
)
def converted(source, request, tmp_path_factory):
    """A folder, and the report."""
    target = tmp_path_factory.mktemp(request.param) / "model"
    return target, convert(source, target, request.param)


def released(source):
    return load_file(source / "model.safetensors")


def experts(params):
    return params.weights["text"]["layers"]["mlp"]["experts"]


def test_every_expert_is_that_of_its_tensor(source, converted):
    tensors, (folder, report) = released(source), converted
    params = load(folder, verify=True)
    for matrix in MATRICES:
        leaf = experts(params)[matrix]["weight"]
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                name = f"thinker.model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"
                own = jax.tree.map(lambda x, i=layer, j=expert: np.asarray(x[i, j]), leaf)
                expected = tensors[name]
                if is_quantized(leaf):
                    expected, _ = quantize(expected, leaf.bits)
                jax.tree.map(np.testing.assert_array_equal, own, expected)
    lines = [line for line in report.splitlines() if "experts" in line]
    assert len(lines) == (3 if "quantised" in report else 0)
    assert not is_quantized(params.weights["text"]["layers"]["mlp"]["gate"]["weight"])


def test_the_fingerprint_is_that_of_the_values(converted):
    params = load(converted[0])
    copied = params.replace(weights=jax.tree.map(lambda x: x.copy(), params.weights))
    assert weights_fingerprint(copied) == params.fingerprint


def test_each_device_has_some_of_the_experts(converted):
    plain, divided = load(converted[0]), load(converted[0], mesh=2)
    jax.tree.map(np.testing.assert_array_equal, experts(divided), experts(plain))
    for leaf in jax.tree.leaves(experts(divided)):
        assert leaf.addressable_shards[0].data.shape[:2] == (LAYERS, EXPERTS // 2)
    assert divided.fingerprint == plain.fingerprint


@pytest.mark.slow
def test_both_prefixes_and_speech_parts(source, tmp_path):
    """A thinker's own save lacks the prefix; a whole release has ``talker`` and ``code2wav``."""
    tensors = {name.removeprefix("thinker."): x for name, x in released(source).items()}
    tensors |= {"code2wav.decoder.weight": np.zeros((2, 2), np.float32)}
    other = write_random_checkpoint(tmp_path / "released")
    save_file(tensors, other / "model.safetensors")
    convert(source, tmp_path / "prefixed", "int8")
    report = convert(other, tmp_path / "model", "int8")
    assert "left out: code2wav (1 tensor)" in report
    assert load(tmp_path / "model").fingerprint == load(tmp_path / "prefixed").fingerprint


def test_fused_experts_are_explained(source, tmp_path):
    """Missing tensors are listed briefly, beside those that are there in their place."""
    tensors = {n: x for n, x in released(source).items() if ".experts." not in n}
    tensors["thinker.model.layers.0.mlp.experts.gate_up_proj"] = np.zeros((8, 96, 64), np.float32)
    other = write_random_checkpoint(tmp_path / "released")
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ConversionError) as error:
        convert(other, tmp_path / "model")
    lines = str(error.value).splitlines()
    count = LAYERS * EXPERTS * len(MATRICES)
    assert f"({count + 1})" in lines[0] and f"and {count - 24} more" in lines[-2]
    assert "surplus   thinker.model.layers.0.mlp.experts.gate_up_proj" in lines[-1]
