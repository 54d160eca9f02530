"""Suite ``prefill``: from encoder outputs to the first token, packed against all tokens."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.harness import Row, peak_memory
from benchmarks.noise_clip import FULL, KEEP_35, KEEP_45, NoiseClip, Prefill
from benchmarks.run_state import Bench
from omnizip_jax.evaluation.decoder_cost import paper_operations, prefill_operations


def run(bench: Bench) -> Iterator[Row]:
    clip = NoiseClip(bench)
    bench.say(f"prefill: {bench.windows} windows, compiling at full, 45 % and 35 % of the tokens")
    programs = [clip.prefill(compression) for compression in (FULL, KEEP_45, KEEP_35)]
    calls, peaks = [], []
    for program in programs:
        calls.append(lambda program=program: program(clip.encoded))
        with peak_memory() as peak:
            calls[-1]()
            peaks.append(peak())
    if bench.has_model_peer:
        calls.append(transformers_call(bench, clip, calls[0]().logits))
    full, *packed, peer = [*bench.alternate(*calls), *([] if bench.has_model_peer else [None])]

    text, weights = bench.config.text, sum(x.nbytes for x in jax.tree.leaves(clip.weights["text"]))

    def true(program: Prefill) -> float:
        return prefill_operations(text, [program.tokens] * text.layers)

    def equation(program: Prefill) -> float:
        return paper_operations(text, [program.tokens] * text.layers, decoded=0)

    for name, timing, program, peak in zip(
        ("full", "packed_45", "packed_35"), (full, *packed), programs, peaks, strict=True
    ):
        floor = bench.machine.floor(true(program), weights)
        note = f"{program.tokens} tokens in {program.slots} slots; {_memory(program, peak)}"
        if program is programs[0]:
            yield bench.timed(f"prefill.{name}", timing, floor=floor, note=note)
            continue
        ideal, paper = (count(programs[0]) / count(program) for count in (true, equation))
        note += f"; ideal {ideal:.2f}x by true count, {paper:.2f}x by eq. 9"
        note += f"; {floor / timing.median:.0%} of the machine's matrix rate"
        yield bench.timed(
            f"prefill.{name}", timing, full, "full tokens", floor=full.median / ideal, note=note
        )
    if peer is not None:
        floor = bench.machine.floor(true(programs[0]), weights)
        yield bench.timed(
            "prefill.vs_transformers", full, peer, "transformers, same tokens", floor=floor
        )


def _memory(program: Prefill, peak: str) -> str:
    temporary, result = program.temporary / 2**20, program.result / 2**20
    return f"temporaries {temporary:.0f} MiB, results {result:.0f} MiB, {peak}"


def transformers_call(bench: Bench, clip: NoiseClip, ours: jax.Array):
    """transformers' decoder on the same features; checks its logits."""
    from benchmarks.peers.thinker import Thinker

    thinker = Thinker(clip.params)
    features = (x[: clip.count] for x in (clip.encoded.video, clip.encoded.audio.tokens))
    embedded = thinker.embedded(thinker.inputs(clip.windows, clip.prompt), *features)
    logits, _ = thinker.prefill(embedded)
    apart = np.abs(np.asarray(ours) - logits.float().cpu().numpy()).max()
    bench.say(f"prefill: logits differ from transformers' by {apart:.1e} at most")
    return lambda: thinker.prefill(embedded)
