"""Memory at the sizes of the 3B, only compiled: bfloat16 weights are not copied or converted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import memory
from benchmarks.ahead import tree_bytes
from benchmarks.harness import program_bytes
from benchmarks.presets import PRESETS
from benchmarks.run_state import Bench
from omnizip_jax.inference.decode import (
    DecodeState,
    SamplingParams,
    generate_tokens,
)
from omnizip_jax.models import cpu_kernels as cpu
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.weight_mapping import abstract

BOUND = 1.3  # times the weights


@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_decoding_makes_no_copy_of_the_weights(batch):
    config = PRESETS["3b"].model.text
    weights = abstract(parameter_tree(PRESETS["3b"].model, jnp.bfloat16))["text"]

    def begin():
        cache = KVCache.empty(config, 3072, jnp.bfloat16)
        logits = jnp.zeros(config.vocabulary)
        state = DecodeState(cache, logits, jnp.int32(0), jax.random.key(0), jnp.bool_(False))
        return state, SamplingParams().sampling, jnp.int32(8)

    given = jax.eval_shape(begin)
    many = [[each] * batch for each in given]
    lowered = generate_tokens.lower(
        weights, *many, config=config, steps=8, end_tokens=(), dtype=jnp.dtype(jnp.bfloat16)
    )
    program = lowered.compile()
    temporary, result = program_bytes(program)
    result -= batch * tree_bytes(given[0].cache)  # written to the donated caches
    assert temporary + result < (BOUND - 1) * tree_bytes(weights)


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 40), (50, 7), (3, 1000)])
def test_a_stacked_matrix_is_multiplied_in_tiles(monkeypatch, outputs, inputs):
    """Tiles that divide the rows, tiles that do not, and rows longer than a tile."""
    monkeypatch.setattr(cpu, "WEIGHT_TILE_BYTES", 3 * 40 * 4)
    rng = np.random.default_rng(0)
    stack, x = rng.standard_normal((3, outputs, inputs)), rng.standard_normal((5, inputs))
    matrix = cpu.StackedMatrix(jnp.asarray(stack, jnp.float32), jnp.int32(1))
    np.testing.assert_allclose(matrix.apply(jnp.float32(x)), x @ stack[1].T, atol=1e-4)


@pytest.mark.slow
def test_every_program_of_the_3b_fits():
    values = {row.name: row.value for row in memory.run(Bench("small"))}
    longer = {name: values.pop(name) for name in list(values) if "growth" in name}
    assert longer["memory.growth, all"] <= 1.1
    assert len(values) == 8
    for name, value in values.items():
        assert 1 < value <= BOUND, name
