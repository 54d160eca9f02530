"""Memory: weights in bfloat16 stay as they are, at the sizes of the real 3B, only compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks import memory
from benchmarks.ahead import tree_bytes
from benchmarks.bench import Bench
from benchmarks.harness import program_bytes
from benchmarks.presets import PRESETS
from omnizip_jax.decode import Generation, Sampling, generate_tokens
from omnizip_jax.models.qwen2_5_omni.parameters import abstract_params
from omnizip_jax.models.text import KVCache

BOUND = 1.3  # times the weights


def test_decoding_keeps_no_second_copy_of_the_weights():
    config = PRESETS["3b"].model.text
    weights = abstract_params(PRESETS["3b"].model, jnp.bfloat16)["text"]

    def begin():
        cache = KVCache.empty(config, 3072, jnp.bfloat16)
        logits = jnp.zeros(config.vocabulary)
        state = Generation(cache, logits, jnp.int32(0), jax.random.key(0), jnp.bool_(False))
        return state, Sampling.of(0.0, 1.0), jnp.int32(8)

    program = generate_tokens.lower(
        weights, *jax.eval_shape(begin), config=config, steps=8, end_tokens=()
    ).compile()
    temporary, result = program_bytes(program)
    assert temporary + result < (BOUND - 1) * tree_bytes(weights)


@pytest.mark.slow
def test_every_program_of_the_3b_fits():
    rows = list(memory.run(Bench("small")))
    assert len(rows) == 8
    for row in rows:
        assert 1 < row.value <= BOUND, row
