"""Suite ``questions``: two questions about one context, to the first token each."""

from __future__ import annotations

from collections.abc import Iterator

import omnizip_jax
from benchmarks import presets
from benchmarks.harness import Row
from benchmarks.noise_clip import KEEP_45
from benchmarks.run_state import Bench

FIRST = "What happens in this video, and what can be heard?"
SECOND = "Who speaks after the door has opened, and where?"


def run(bench: Bench) -> Iterator[Row]:
    windows = bench.compression_windows  # of full length
    params = presets.random_params(bench.config, bench.dtype, bench.weights)
    clip = presets.random_clip(windows, params.config)
    bench.say(f"questions: {windows} windows, 45 % of the tokens, compiling ``read`` and ``ask``")
    context = omnizip_jax.read(params, clip, KEEP_45)

    def first() -> None:
        nonlocal context
        del context  # one cache at a time
        context = omnizip_jax.read(params, clip, KEEP_45)
        omnizip_jax.ask(params, context, FIRST, max_new_tokens=1)

    def second() -> None:
        omnizip_jax.ask(params, context, SECOND, max_new_tokens=1)

    whole, again = bench.alternate(first, second)
    slots = f"{int(context.cache.length)} of {context.capacity} slots in use"
    yield bench.timed("questions.first", whole, note=f"encoders, read, ask; {windows} windows")
    yield bench.figure(
        "questions.second",
        again.median / whole.median,
        "share",
        note=f"{again.median * 1e3:.3g} ms of {whole.median:.3g} s; {slots}",
    )
