"""Suite ``memory``: memory of the 3B's programs in addition to its weights, from the compiler."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import presets
from benchmarks.ahead import Target, programs, tree_bytes
from benchmarks.harness import Row
from benchmarks.run_state import Bench
from omnizip_jax.models.qwen2_5_omni.weight_mapping import abstract_params

MODEL, WINDOWS = "3b", 8


def run(bench: Bench) -> Iterator[Row]:
    device = jax.devices()[0]
    bench.say(f"memory: compiling the programs of the {MODEL}, {WINDOWS} windows, bfloat16")
    weights = tree_bytes(abstract_params(presets.PRESETS[MODEL].model, jnp.bfloat16))
    for program in programs(Target(device, device.platform), MODEL, WINDOWS):
        needed = weights + program.needed
        yield bench.figure(
            f"memory.{program.name}",
            needed / weights,
            "x",
            note=f"{needed / 2**30:.2f} GiB with all weights, {weights / 2**30:.2f} GiB; "
            f"temporaries {program.temporaries / 2**20:.0f} MiB; XLA took {program.seconds:.0f} s",
        )
