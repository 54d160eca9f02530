"""Suite ``memory``: memory of the 3B's programs in addition to its weights, from the compiler."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks import presets
from benchmarks.ahead import Target, programs, tree_bytes
from benchmarks.harness import Row
from benchmarks.run_state import Bench

MODEL, WINDOWS = "3b", 8


def run(bench: Bench) -> Iterator[Row]:
    bench.say(f"memory: compiling the programs of the {MODEL}, {WINDOWS} windows, bfloat16")
    target = Target(jax.devices()[:1], jax.default_backend(), presets.PRESETS[MODEL].model)
    weights = tree_bytes(target.weights)
    for program in programs(target, WINDOWS):
        needed = weights + program.needed
        yield bench.figure(
            f"memory.{program.name}",
            needed / weights,
            "x",
            note=f"{needed / 2**30:.2f} GiB with all weights, {weights / 2**30:.2f} GiB; "
            f"temporaries {program.temporaries / 2**20:.0f} MiB; XLA took {program.seconds:.0f} s",
        )
