"""The mixture of experts against a loop over tokens in numpy, and what it reads."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.presets import PRESETS
from omnizip_jax.models import experts
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.experts import AXES, Experts, choose_experts
from omnizip_jax.models.layer_scan import layer_params
from omnizip_jax.models.parameters import logical_axes
from omnizip_jax.models.quantized import dequantized, is_quantized, quantize
from omnizip_jax.models.sharding import MODEL, axis_sharding

CONFIG = dataclasses.replace(
    PRESETS["tiny"].model.text, hidden=64, experts=6, experts_per_token=2, expert_ffn=32
)
LAYERS, LAYER = 3, 1


@pytest.fixture(scope="module")
def stack():
    """Weights of several layers."""
    layer = Experts(CONFIG, jnp.float32, Backend.CPU)
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return jax.vmap(lambda key: layer.init(key, jnp.zeros((1, 64)))["params"])(keys)


def tokens(count: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (count, 64))


def by_hand(params, x):
    """The definition: token by token, expert by expert, in float64."""
    params = jax.tree.map(lambda y: dequantized(y, jnp.float32), params, is_leaf=is_quantized)
    params = jax.tree.map(lambda y: np.asarray(y[LAYER], np.float64), params)
    gate, up, down = (params["experts"][f"{x}_proj"]["weight"] for x in ("gate", "up", "down"))
    out = np.zeros(x.shape)
    for token, row in enumerate(np.asarray(x, np.float64)):
        probability = np.exp(params["gate"]["weight"] @ row)
        chosen = np.argsort(-probability)[: CONFIG.experts_per_token]
        for expert in chosen:
            inner = gate[expert] @ row
            inner = inner / (1 + np.exp(-inner)) * (up[expert] @ row)
            share = probability[expert] / probability[chosen].sum()
            out[token] += share * (down[expert] @ inner)
    return out


def run(stack, x, backend=Backend.CPU):
    def call(stack, x):
        params = layer_params(stack, jnp.int32(LAYER), backend, len(x))
        return Experts(CONFIG, x.dtype, backend).apply({"params": params}, x)

    return jax.jit(call)(stack, x)


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("backend", Backend)
def test_results_are_those_of_a_loop(stack, count, backend, monkeypatch):
    """Blocks of one token, of fewer than a full one, and several of an expert in several chunks."""
    monkeypatch.setattr(experts, "BLOCK", 8)
    monkeypatch.setattr(experts, "CHUNK", 16)
    x = tokens(count)
    np.testing.assert_allclose(run(stack, x, backend), by_hand(stack, x), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 40])
def test_quantized_experts(stack, bits, count):
    x, matrices = tokens(count), stack["experts"]
    quantized = jax.tree.map(
        lambda y: jax.tree.map(jnp.asarray, quantize(np.asarray(y), bits)[0]), matrices
    )
    weights = stack | {"experts": quantized}
    np.testing.assert_allclose(run(weights, x), by_hand(weights, x), atol=1e-5)


def test_half_precision_is_close(stack):
    half = jax.tree.map(lambda y: y.astype(jnp.bfloat16), stack)
    x = tokens(40).astype(jnp.bfloat16)
    found = run(half, x)
    assert found.dtype == jnp.bfloat16
    errors = np.abs(found - by_hand(half, x)).max(axis=1)  # another expert may be chosen in a tie
    assert np.median(errors) < 0.01


def test_every_token_may_choose_the_same_experts(stack):
    x = jnp.broadcast_to(tokens(1), (40, 64))
    np.testing.assert_allclose(run(stack, x), by_hand(stack, x), atol=1e-5)


def test_other_experts_are_not_read(stack):
    x = tokens(1)
    router = stack["gate"]["weight"][LAYER]
    _, chosen = choose_experts(x @ router.T, CONFIG.experts_per_token)
    read = (jnp.arange(LAYERS)[:, None] == LAYER) & jnp.isin(jnp.arange(6), chosen[0])
    poisoned = jax.tree.map(
        lambda y: jnp.where(read[..., None, None], y, jnp.nan), stack["experts"]
    )
    found = run(stack | {"experts": poisoned}, x)
    np.testing.assert_array_equal(found, run(stack, x))


def test_weights_of_the_chosen_sum_to_one():
    logits = jax.random.normal(jax.random.key(2), (5, 6), jnp.bfloat16)
    weights, chosen = choose_experts(logits, 2)
    assert weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.sum(weights.astype(jnp.float32), axis=1), 1, atol=1e-2)
    expected = np.argsort(-np.asarray(logits, np.float32), axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_experts_are_divided_over_devices(stack, count, devices):
    """Each device has some of them; the only communication is the sum of their results."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (MODEL,), axis_types=(AxisType.Auto,))

    def place(path, leaf):
        axes = logical_axes(("", *(key.key for key in path)), leaf.ndim, True, AXES)
        return jax.device_put(leaf, axis_sharding(axes, mesh, {"experts": CONFIG.experts}))

    divided, x = jax.tree_util.tree_map_with_path(place, stack), tokens(count)
    shards = divided["experts"]["up_proj"]["weight"].addressable_shards
    assert {shard.data.shape[1] for shard in shards} == {CONFIG.experts // devices}
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def call(stack, x):
        params = layer_params(stack, jnp.int32(LAYER), Backend.CPU_MESH, count)
        return Experts(CONFIG, jnp.float32, Backend.CPU_MESH).apply({"params": params}, x)

    program = call.lower(divided, x).compile()
    moved = re.findall(
        r"= \S+ (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", str(program.as_text())
    )
    assert moved == ["all-reduce"]
    np.testing.assert_allclose(program(divided, x), by_hand(stack, x), atol=1e-5)
