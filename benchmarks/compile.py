"""Suite ``compile``: time before a program first runs, and how many programs different inputs need.

``cold`` and ``warm``: two processes share an empty cache folder and call ``warmup``, one after the
other. ``questions`` and ``clips``: one process each, without a cache, asks questions of 1 to 300
tokens about one context, or one question about clips of 1 to 64 windows.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

import omnizip_jax
from benchmarks import presets
from benchmarks.harness import Row
from benchmarks.run_state import Bench
from omnizip_jax.models.loaded_model import Params

ROOT = Path(__file__).resolve().parents[1]
PROGRAM_SECONDS = 0.2  # single operations compile in less time and are not counted
XLA = "/jax/core/compile/backend_compile_duration"
EVENTS = {  # JAX's own account of the time before a program runs
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    XLA: "XLA",
}
QUESTION_TOKENS = [1, *range(15, 271, 15), 300]
CLIP_WINDOWS = (1, 2, 3, 5, 8, 9, 14, 20, 33, 48, 64)
QUESTION = "What happens in this video, and what can be heard?"


def run(bench: Bench) -> Iterator[Row]:
    bench.say(f"compile: the programs for {bench.windows} windows, in two new processes")
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            seconds = _in_new_process(bench, "warm_up", cache)
            parts = ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items())
            yield bench.figure(f"compile.{name}", sum(seconds.values()), "s", note=parts)
    bench.say(f"compile: {len(QUESTION_TOKENS)} questions of 1 to {QUESTION_TOKENS[-1]} tokens")
    first, *later = _in_new_process(bench, "questions")
    note = f"after the first question ({_describe([first])}): {_describe(later)}"
    yield bench.figure("compile.questions", _programs(later), "programs", note=note)
    bench.say(f"compile: {len(CLIP_WINDOWS)} clips of 1 to {CLIP_WINDOWS[-1]} windows")
    clips = _in_new_process(bench, "clips")
    yield bench.figure("compile.clips", _programs(clips), "programs", note=_describe(clips))


def _in_new_process(bench: Bench, name: str, cache: str = "") -> Any:
    """The JSON that one of the functions below returns."""
    command = [sys.executable, "-m", "benchmarks.compile", name, bench.name, str(bench.windows)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def warm_up(params: Params, windows: int) -> dict[str, float]:
    """Compile everything for a clip; seconds by kind of work."""
    seconds = dict.fromkeys(EVENTS.values(), 0.0)

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        if event in EVENTS:
            seconds[EVENTS[event]] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(count)
    omnizip_jax.warmup(params, 2.0 * windows, question_tokens=64)
    return seconds


def questions(params: Params, windows: int) -> list[Any]:
    """Programs and seconds of each question about one context, to its first token."""
    clip = presets.random_clip(windows, params.config)
    context = omnizip_jax.read(params, clip)

    def ask(tokens: int) -> Callable[[], Any]:
        question = question_of(tokens)
        return lambda: omnizip_jax.ask(params, context, question, max_new_tokens=1)

    return [[tokens, *_count(ask(tokens))] for tokens in QUESTION_TOKENS]


def clips(params: Params, _: int) -> list[Any]:
    """Programs and seconds of each clip, to the first token."""

    def generate(windows: int) -> Callable[[], Any]:
        clip = presets.random_clip(windows, params.config)
        return lambda: omnizip_jax.generate(params, clip, QUESTION, max_new_tokens=1)

    return [[windows, *_count(generate(windows))] for windows in CLIP_WINDOWS]


def question_of(tokens: int) -> str:
    """A question of this many tokens for the tokenizer of ``random_params``."""
    return "?" * tokens


def _count(call: Callable[[], Any]) -> tuple[float, list[str]]:
    """Seconds of a call, and the names of the programs that it compiles."""
    programs = []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        if event == XLA and duration_secs >= PROGRAM_SECONDS:
            programs.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    jax.monitoring.unregister_event_duration_listener(listen)
    return seconds, programs


def _describe(calls: list[Any]) -> str:
    """Times of the first answers by size, and the programs compiled."""
    times = ", ".join(f"{size}: {seconds:.3g} s" for size, seconds, _ in calls)
    counts = collections.Counter(name for *_, programs in calls for name in programs)
    programs = ", ".join(f"{count} x {name}" for name, count in counts.items())
    return f"first answers by size {times}; compiled {programs or 'nothing'}"


def _programs(calls: list[Any]) -> int:
    return sum(len(programs) for *_, programs in calls)


if __name__ == "__main__":
    name, preset, windows = sys.argv[1:]
    params = presets.random_params(presets.PRESETS[preset].model, presets.default_dtype())
    print(json.dumps(globals()[name](params, int(windows))))
