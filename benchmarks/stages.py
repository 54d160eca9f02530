"""Suite ``stages``: prefills in which tokens leave inside the decoder, against a plain one.

And decoding over the cache that such a prefill leaves, in segments, against one cache of the same
total.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import presets
from benchmarks.decode import Decoding
from benchmarks.harness import Call, Row
from benchmarks.run_state import Bench
from omnizip_jax.compression import FastV, Seats
from omnizip_jax.compression.decoder_stages import Stage, Tokens
from omnizip_jax.evaluation.decoder_cost import prefill_operations
from omnizip_jax.inference.decode import DECODE_BLOCK, DecodeState
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import Decoder, KVCache
from omnizip_jax.types import TokenKind

WINDOW_TOKENS, ROOM = 338, 64


def run(bench: Bench) -> Iterator[Row]:
    layers, media = bench.config.text.layers, bench.windows * WINDOW_TOKENS
    total = media + presets.TEXT_TOKENS
    methods = {"fastv": FastV().stages(layers), "seats": Seats().stages(layers)}
    bench.say(f"stages: {total} tokens, those of FastV after layer {methods['fastv'][0].after}")
    full, *others = bench.alternate(
        prefill(bench, ()), *(prefill(bench, stages) for stages in methods.values())
    )
    whole = prefill_operations(bench.config.text, [total] * layers)
    for (name, stages), timing in zip(methods.items(), others, strict=True):
        tokens = tokens_by_layer(stages, layers, media)
        ideal = whole / prefill_operations(bench.config.text, tokens)
        left = ", ".join(f"{tokens[stage.after]} after layer {stage.after}" for stage in stages)
        note = f"{total} tokens, {left}; ideal {ideal:.2f}x by true count"
        yield bench.timed(
            f"stages.{name}", timing, full, "all tokens", floor=full.median / ideal, note=note
        )
    yield _decoding(bench, tokens_by_layer(methods["fastv"], layers, media))


def tokens_by_layer(stages: tuple[Stage, ...], layers: int, media: int) -> list[int]:
    """Tokens of the prompt in each layer, text included."""
    text = presets.TEXT_TOKENS
    out = [media + text] * layers
    for stage in stages:
        out[stage.after :] = [stage.bound(text, out[-1] - text)] * (layers - stage.after)
    return out


def prefill(bench: Bench, stages: tuple[Stage, ...]) -> Call:
    """A whole prompt to the logits of the first token."""
    config, weights = bench.config.text, bench.weights["text"]
    media = bench.windows * WINDOW_TOKENS
    place = jnp.arange(media + presets.TEXT_TOKENS, dtype=jnp.int32)
    tokens = Tokens(
        positions=jnp.broadcast_to(place, (3, len(place))),
        kind=jnp.where(place < media, TokenKind.VIDEO, TokenKind.TEXT),
        window=jnp.minimum(place // WINDOW_TOKENS, bench.windows - 1),
        count=jnp.int32(len(place)),
        windows=bench.windows,
    )
    x = jax.random.normal(jax.random.key(0), (len(place), config.hidden), bench.dtype)
    by_layer = tokens_by_layer(stages, config.layers, media)
    sizes = tuple(by_layer[stage.after] for stage in stages)
    backend = Backend.of(weights)

    def first(weights: Any, x: jax.Array, tokens: Tokens) -> Any:
        decoder = Decoder(config, bench.dtype, backend).bind({"params": weights})
        hidden, left, cache, _ = decoder.prefill(x, tokens, stages, sizes, ROOM)
        return decoder.logits(hidden[left.count - 1][None]), cache

    program = jax.jit(first).lower(weights, x, tokens).compile()
    return lambda: jax.block_until_ready(program(weights, x, tokens))


def _decoding(bench: Bench, tokens: list[int]) -> Row:
    """A token over two segments, and over one cache that holds as many keys in all."""
    config = bench.config.text
    first = tokens.index(tokens[-1])
    free_slots = DECODE_BLOCK * bench.most_rounds

    def cache(layers: int, length: int) -> KVCache:
        empty = KVCache.empty(config, length + free_slots, bench.dtype, layers)
        keys, values = jax.random.normal(jax.random.key(1), (2, *empty.keys.shape), bench.dtype)
        return KVCache(keys, values, jnp.int32(length))

    def sampling_params(cache: Any) -> Decoding:
        logits = jax.random.normal(jax.random.key(2), (config.vocabulary,))
        position = jnp.int32(max(tokens))
        start = DecodeState(cache, logits, position, jax.random.key(0), jnp.bool_(False))
        return Decoding(bench, start)

    segments = cache(first, tokens[0]), cache(config.layers - first, tokens[-1])
    mean = round(sum(tokens) / config.layers)
    ours, one = bench.alternate(
        sampling_params(segments), sampling_params(cache(config.layers, mean))
    )
    return bench.timed(
        "stages.decode",
        ours,
        one,
        "one cache",
        per=DECODE_BLOCK,
        note=f"per token, after {tokens[0]} in {first} layers and {tokens[-1]} in the others; "
        f"one cache: {mean} in all",
    )
