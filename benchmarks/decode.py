"""Suite ``decode``: seconds per token after the first, and whether the cache is ever copied."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flops import decode_weights
from benchmarks.harness import Call, Row, program_bytes
from benchmarks.noise_clip import FULL, KEEP_45, NoiseClip
from benchmarks.run_state import Bench
from omnizip_jax.evaluation.decoder_cost import cache_values
from omnizip_jax.inference.decode import DECODE_BLOCK, DecodeState, SamplingParams, generate_tokens
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import KVCache


class Decoding:
    """A generation that decodes a block of tokens in each call."""

    def __init__(self, bench: Bench, decode_state: DecodeState):
        self.weights, self.state = bench.weights["text"], decode_state
        self.sampling, self.limit = SamplingParams().sampling, jnp.int32(DECODE_BLOCK)
        self.program = generate_tokens.lower(
            self.weights,
            [decode_state],
            [self.sampling],
            [self.limit],
            config=bench.config.text,
            steps=DECODE_BLOCK,
            end_tokens=(),
            dtype=bench.dtype,
            backend=Backend.of(self.weights),
        ).compile()

    def __call__(self) -> None:
        _, made, (self.state,) = self.program(
            self.weights, [self.state], [self.sampling], [self.limit]
        )
        if made.tolist() != [DECODE_BLOCK]:
            raise AssertionError(f"made {made} tokens instead of {DECODE_BLOCK}")
        jax.block_until_ready(self.state)


def run(bench: Bench) -> Iterator[Row]:
    clip = NoiseClip(bench)
    bench.say(f"decode: {bench.windows} windows, prefill at full and 45 % of the tokens")
    free_slots = DECODE_BLOCK * bench.most_rounds
    prefills = [clip.prefill(compression, free_slots) for compression in (FULL, KEEP_45)]
    full, packed = (Decoding(bench, prefill(clip.encoded)) for prefill in prefills)
    calls: list[Call] = [full, packed]
    theirs = None
    if bench.has_model_peer:
        theirs = TransformersDecoding(clip, full.state)
        calls.append(theirs)
    ours, ours_packed, *peers = bench.alternate(*calls)
    peer = peers[0] if peers else None
    if theirs:
        apart = np.abs(np.asarray(full.state.logits) - theirs.logits.float().cpu().numpy()).max()
        bench.say(f"decode: logits differ from transformers' by {apart:.1e} at the end")

    text, item = bench.config.text, bench.dtype.itemsize
    weights = decode_weights(text) * item
    floor = bench.machine.floor(2 * weights / item, weights)
    for name, timing, tokens, what in (
        ("vs_transformers", ours, prefills[0].tokens, "transformers, same tokens"),
        ("vs_transformers_45", ours_packed, prefills[1].tokens, "transformers, full tokens"),
    ):
        cache = cache_values(text, [tokens] * text.layers) * item
        note = (
            f"per token, after {tokens}; the floor reads {weights / 1e6:.0f} MB of weights, "
            f"the cache holds {cache / 1e6:.0f} MB"
        )
        yield bench.timed(
            f"decode.{name}", timing, peer, what, per=DECODE_BLOCK, floor=floor, note=note
        )
    temporary, _ = program_bytes(full.program)
    cache = cache_bytes(full.state.cache)
    copies = "no copy of the cache" if temporary < cache else "MAY HOLD A COPY OF THE CACHE"
    yield bench.figure(
        "decode.temporaries",
        temporary / cache,
        "share",
        note=f"{temporary / 1e6:.2f} MB beside a cache of {cache / 1e6:.0f} MB: {copies}",
    )


def cache_bytes(cache: KVCache) -> int:
    return sum(x.nbytes for x in jax.tree.leaves((cache.keys, cache.values)))


class TransformersDecoding:
    """transformers' decoder, one token after the other, from the same prompt."""

    def __init__(self, clip: NoiseClip, decode_state: DecodeState):
        from benchmarks.peers.thinker import Thinker

        self.thinker = Thinker(clip.params)
        inputs = self.thinker.inputs(clip.windows, clip.prompt)
        features = (x[: clip.count] for x in (clip.encoded.video, clip.encoded.audio.tokens))
        self.logits, self.cache = self.thinker.prefill(self.thinker.embedded(inputs, *features))
        self.position = int(decode_state.position)

    def __call__(self) -> None:
        self.logits, self.cache = self.thinker.decode(
            self.logits, self.cache, self.position, DECODE_BLOCK
        )
        self.position += DECODE_BLOCK
