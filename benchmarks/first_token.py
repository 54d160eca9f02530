"""Suite ``first-token``: from pixels and mel to the first token, encoders included."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks import flops
from benchmarks.harness import Call, Row, peak_memory
from benchmarks.noise_clip import FULL, KEEP_45, NoiseClip
from benchmarks.run_state import Bench
from omnizip_jax.evaluation.decoder_cost import prefill_operations


def run(bench: Bench) -> Iterator[Row]:
    clip = NoiseClip(bench)
    bench.say(f"first token: {bench.windows} windows, compiling the encoders and two prefills")
    with peak_memory() as encoders_peak:
        clip.encode()
        peak = encoders_peak()
    packed, full = clip.prefill(KEEP_45), clip.prefill(FULL)
    calls: list[Call] = [clip.encode, packed, full]
    if bench.has_model_peer:
        from benchmarks.peers.thinker import Thinker

        thinker = Thinker(clip.params)
        inputs = thinker.inputs(clip.windows, clip.prompt)
        calls += [lambda: thinker.encode(inputs), lambda: thinker.first_token(inputs)]
    encoders, ours, ours_full, *peers = bench.alternate(*calls)
    their_encoders, theirs = peers or (None, None)

    encoding = flops.encoder_flops(bench.config, bench.windows)
    size = {
        name: sum(x.nbytes for x in jax.tree.leaves(tree)) for name, tree in bench.weights.items()
    }

    def floor(tokens: int = 0) -> float:
        """Floor of the encoders, and of a prefill if ``tokens`` is given."""
        seconds = bench.machine.floor(encoding, size["audio"] + size["vision"])
        if tokens:
            text = bench.config.text
            prefill = prefill_operations(text, [tokens] * text.layers)
            seconds += bench.machine.floor(prefill, size["text"])
        return seconds

    peer = "transformers, full tokens"
    note = f"{bench.windows} windows; {peak}"
    yield bench.timed(
        "first_token.encoders", encoders, their_encoders, "transformers", floor=floor(), note=note
    )
    ideal = floor(full.tokens) / floor(packed.tokens)
    note = f"{packed.tokens} of {full.tokens} tokens; ideal {ideal:.2f}x of full by true count"
    yield bench.timed(
        "first_token.vs_transformers_45",
        ours,
        theirs,
        peer,
        floor=floor(packed.tokens),
        note=note,
    )
    yield bench.timed(
        "first_token.vs_transformers", ours_full, theirs, peer, floor=floor(full.tokens)
    )
    yield bench.timed(
        "first_token.packed_45", ours, ours_full, "full tokens", floor=ours_full.median / ideal
    )
