"""Suite ``compile``: what the first clip of a length costs, cold and from the persistent cache.

Two processes, one after the other, share an empty cache folder and call ``warmup``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.harness import Row

ROOT = Path(__file__).resolve().parents[1]
EVENTS = {  # JAX's own account of the time before a program runs
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "XLA",
}


def run(bench: Bench) -> Iterator[Row]:
    bench.say(f"compile: the programs for {bench.windows} windows, in two new processes")
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            command = ["-m", "benchmarks.compile", bench.name, str(bench.windows), cache]
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            seconds = json.loads(done.stdout.splitlines()[-1])
            parts = ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items())
            yield bench.figure(f"compile.{name}", sum(seconds.values()), "s", note=parts)


def main() -> None:
    """The second process: compile everything, print seconds by kind of work."""
    import jax

    from benchmarks.presets import PRESETS, default_dtype, random_params
    from omnizip_jax import warmup

    preset, windows, cache = sys.argv[1:]
    params = random_params(PRESETS[preset].model, default_dtype())
    seconds = dict.fromkeys(EVENTS.values(), 0.0)

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        if event in EVENTS:
            seconds[EVENTS[event]] += duration_secs

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.monitoring.register_event_duration_secs_listener(count)
    warmup(params, 2.0 * int(windows))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
