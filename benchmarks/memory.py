"""Suite ``memory``: memory of the 3B's programs in addition to its weights, from the compiler."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks import presets
from benchmarks.ahead import Target, programs, tree_bytes
from benchmarks.harness import Row
from benchmarks.run_state import Bench

MODEL, WINDOWS = "3b", 8
SHORT, LONG = 64, 640  # windows; the model's positions end at 655


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
    bench.say(f"memory: prefill of {SHORT} and of {LONG} windows")
    for name in ("all", "45 %"):
        short, long = (_first_token(target, name, windows) for windows in (SHORT, LONG))
        yield bench.figure(
            f"memory.growth, {name}",
            long / short,
            "x",
            note=f"temporaries of the prefill {short / 2**20:.0f} MiB for {SHORT} windows, "
            f"{long / 2**20:.0f} MiB for {LONG}",
        )


def _first_token(target: Target, method: str, windows: int) -> int:
    """Temporaries of the prefill of a clip, bytes."""
    found = (p for p in programs(target, windows) if p.name == f"first token, {method}")
    return next(found).temporaries
