"""Suite ``stages``: a prefill in which tokens leave inside the decoder, against a plain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import presets
from benchmarks.bench import Bench
from benchmarks.harness import Row
from omnizip_jax.compression.fastv import Attended
from omnizip_jax.compression.stages import TEXT, VIDEO, Stage, Tokens
from omnizip_jax.evaluation.operations import prefill_operations
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.text import Decoder

WINDOW_TOKENS, ROOM = 338, 64


def run(bench: Bench) -> Iterator[Row]:
    config, weights = bench.config.text, bench.weights["text"]
    media = bench.windows * WINDOW_TOKENS
    total = media + presets.TEXT_TOKENS
    # As deep as layer 5 of 28, where the OmniZip paper has it.
    stage = Attended(max(1, round(config.layers * 5 / 28)), media=0.5)
    bench.say(f"stages: {total} tokens, half of the media leave after layer {stage.after}")
    kind = jnp.where(jnp.arange(total) < media, VIDEO, TEXT)
    positions = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (3, total))
    tokens = Tokens(positions, kind, jnp.zeros(total, jnp.int32), jnp.int32(total))
    x = jax.random.normal(jax.random.key(0), (total, config.hidden), bench.dtype)
    kernels = Kernels.of(weights)

    def compiled(*stages: Stage) -> Any:
        sizes = tuple(stage.bound(presets.TEXT_TOKENS, media) for stage in stages)

        def first(weights: Any, x: jax.Array, tokens: Tokens) -> Any:
            decoder = Decoder(config, bench.dtype, kernels).bind({"params": weights})
            hidden, left, cache, _ = decoder.prefill(x, tokens, stages, sizes, ROOM)
            return decoder.logits(hidden[left.count - 1][None]), cache

        program = jax.jit(first).lower(weights, x, tokens).compile()
        return lambda: jax.block_until_ready(program(weights, x, tokens))

    full, fastv = bench.alternate(compiled(), compiled(stage))
    left = stage.bound(presets.TEXT_TOKENS, media)
    plain = [total] * config.layers
    staged = plain[: stage.after] + [left] * (config.layers - stage.after)
    ideal = prefill_operations(config, plain) / prefill_operations(config, staged)
    note = f"{total} tokens, {left} after layer {stage.after}; ideal {ideal:.2f}x by true count"
    yield bench.timed(
        "stages.fastv", fastv, full, "all tokens", floor=full.median / ideal, note=note
    )
