"""Suite ``quantized``: weights in 8 and 4 bits, and a cache in 8, against floating point."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import presets
from benchmarks.decode import Decoding
from benchmarks.harness import Row
from benchmarks.noise_clip import KEEP_45, NoiseClip
from benchmarks.run_state import Bench
from benchmarks.stream import CAPACITY, Stream
from omnizip_jax.inference.decode import DECODE_BLOCK
from omnizip_jax.models.decoder import KVCache

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def run(bench: Bench) -> Iterator[Row]:
    weights = presets.random_weights(bench.config, FLOAT32)
    benches = {
        "bfloat16": _with(bench, jax.tree.map(lambda x: x.astype(BFLOAT16), weights), BFLOAT16),
        "float32": _with(bench, weights, FLOAT32),
    }
    for bits in (8, 4):
        quantized = presets.quantized_weights(weights, bench.config, bits)
        benches[f"int{bits}"] = _with(bench, quantized, bench.dtype)
    yield from _weights(bench, benches)
    yield from _cache(bench, weights)


def _with(bench: Bench, weights: Any, dtype: jnp.dtype) -> Bench:
    """The same run with other weights."""
    other = copy.copy(bench)
    other.weights, other.dtype = weights, dtype
    return other


def _weights(bench: Bench, benches: dict[str, Bench]) -> Iterator[Row]:
    bench.say(f"quantized: {bench.windows} windows at 45 % of the tokens, {', '.join(benches)}")
    free_slots = DECODE_BLOCK * bench.most_rounds
    prefills, decodings = [], []
    for own in benches.values():
        clip = NoiseClip(own)
        prefill = clip.prefill(KEEP_45, free_slots)
        prefills.append(lambda prefill=prefill, clip=clip: prefill(clip.encoded))
        decodings.append(Decoding(own, prefill(clip.encoded)))
    for name, calls, per in (("prefill", prefills, 1), ("decode", decodings, DECODE_BLOCK)):
        timings = dict(zip(benches, bench.alternate(*calls), strict=True))
        for bits in ("int8", "int4"):
            row = f"quantized.{name}_{bits}"
            yield bench.timed(row, timings[bits], timings["bfloat16"], "bfloat16", per=per)
            other = timings["float32"]
            yield bench.timed(f"{row}_vs_float32", timings[bits], other, "float32", per=per)


def _cache(bench: Bench, weights: Any) -> Iterator[Row]:
    bench.say(f"quantized: a streamed window, {CAPACITY // 2} slots in use")
    params = presets.random_params(bench.config, FLOAT32, weights)
    window = jax.tree.map(lambda x: x[0], presets.random_windows(1, bench.config))

    def feed(quantized_cache: bool) -> Any:
        stream = Stream(params.replace(quantized_cache=quantized_cache), KEEP_45, window)
        return lambda: stream.at(CAPACITY // 2).feed()

    ours, plain = bench.alternate(feed(True), feed(False))
    yield bench.timed("quantized.window", ours, plain, "cache in float32")

    def size(dtype: Any) -> int:
        cache = jax.eval_shape(lambda: KVCache.empty(bench.config.text, CAPACITY, dtype))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))

    share = size(jnp.int8) / size(BFLOAT16)
    yield bench.figure("quantized.cache", share, "share", note="of a cache in bfloat16")
