"""Suite ``stream``: time per window and to the first token, by length of the history."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import flops, presets
from benchmarks.bouncing_clip import write_clip
from benchmarks.harness import Row
from benchmarks.noise_clip import FULL, KEEP_45
from benchmarks.run_state import Bench
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.decoder_cost import layer_weights
from omnizip_jax.inference import streaming as stream
from omnizip_jax.inference.context import commit
from omnizip_jax.inference.generation import ask
from omnizip_jax.media import windows
from omnizip_jax.models import attention
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.types import Window

CAPACITY = 16_384  # slots; half an hour at 45 % of 640 x 360
FILLS = (0.0, 0.25, 0.5, 1.0)
QUESTION = "What happens in this video, and what can be heard?"
CLIP_SECONDS = 16


class Stream:
    """A stream whose history can be set to any length.

    Time depends on the number of slots in use, not on their content.
    """

    def __init__(self, params: Params, method: Method, window: Window):
        self.params, self.window = params, window
        self.state = stream.init_stream(params, method, capacity=CAPACITY)
        self.begin = int(self.state.cache.length)
        # Largest length without eviction.
        self.full = (
            CAPACITY - self.state.prefill_config.window_capacity - self.state.retention.text_slots
        )
        self.feed()
        self.per_window = int(self.state.cache.length) - self.begin

    def at(self, length: int) -> Stream:
        """Set the length of the history, in slots."""
        state = self.state
        position = min(length, state.prefill_config.config.text.max_positions // 2)
        slots, now = (commit(jnp.int32(x), state.cache.length) for x in (length, position))
        self.state = state.replace(
            cache=state.cache.replace(length=slots),
            state=state.state.replace(time=now, base=now, after=now),
            used_slots=length,
            used_positions=position,
        )
        return self

    def feed(self) -> None:
        self.state = jax.block_until_ready(stream.feed(self.params, self.state, self.window))

    def ask(self) -> None:
        """A question and the first token of its answer."""
        ask(self.params, self.state, QUESTION, max_new_tokens=1)


def run(bench: Bench) -> Iterator[Row]:
    config = bench.config
    params = presets.random_params(config, bench.dtype, bench.weights)
    window = jax.tree.map(lambda x: x[0], presets.random_windows(1, config))
    bench.say(f"stream: a cache of {CAPACITY} slots, compiling one program")
    ours = Stream(params, KEEP_45, window)
    # The last window below a quarter or a half; at the whole, a question still fits.
    block = ours.state.prefill_config.window_capacity
    lengths = [max(ours.begin, min(round(f * CAPACITY) - block, ours.full)) for f in FILLS]

    timings = bench.alternate(*(_at(ours, n, ours.feed) for n in lengths))
    for fill, length, timing in zip(FILLS, lengths, timings, strict=True):
        share = f"attention has {_attention_share(bench, ours, length):.0%} of the operations"
        note = f"{length} of {CAPACITY} slots in use; {share}"
        yield bench.timed(f"stream.window_{fill * 100:.0f}", timing, note=note)

    timings = bench.alternate(*(_at(ours, n, ours.ask) for n in lengths))
    for fill, timing in zip(FILLS, timings, strict=True):
        note = "from question to first token"
        yield bench.timed(f"stream.first_token_{fill * 100:.0f}", timing, note=note)

    bench.say("stream: compiling it for all tokens, and once more for the full capacity")
    history = bench.windows
    everything = Stream(params, FULL, window)
    length = min(everything.begin + history * everything.per_window, everything.full)
    packed, full = bench.alternate(
        _at(ours, ours.begin + history * ours.per_window, ours.feed),
        _at(everything, length, everything.feed),
    )
    note = f"{history} windows of history; {ours.per_window} against {everything.per_window} tokens"
    yield bench.timed("stream.window", packed, full, "full tokens", note=note)
    del everything

    eighth = CAPACITY // 8 - block
    bucketed, whole = bench.alternate(
        _at(ours, eighth, ours.feed), _at(ours, eighth, _whole(ours.at(eighth)))
    )
    yield bench.timed(
        "stream.bucketed",
        bucketed,
        whole,
        "attending to the full capacity",
        note=f"{eighth} of {CAPACITY} slots in use",
    )
    yield _overlap(bench, params)


def _at(of: Stream, length: int, call: Callable[[], None]) -> Callable[[], None]:
    def timed() -> None:
        of.at(length)
        call()

    return timed


def _whole(ours: Stream) -> Callable[[], None]:
    """``feed`` with attention to the whole cache."""
    program: Any = stream._feed
    own = jax.jit(
        lambda *arguments, prefill_config: program.__wrapped__(
            *arguments, prefill_config=prefill_config
        ),
        static_argnames="prefill_config",
        donate_argnums=1,
    )

    def feed() -> None:
        with mock.patch.object(stream, "_feed", own):
            ours.feed()

    with mock.patch.object(attention, "MIN_LENGTH_BUCKET", CAPACITY):
        feed()
    return feed


def _overlap(bench: Bench, params: Params) -> Row:
    """A clip from its file to the cache, with decoding in parallel to the device's work."""
    spec = bench.config.spec
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.mp4", seconds=CLIP_SECONDS)

        def media() -> list[Window]:
            return list(windows(clip, spec))

        def feed(source: Any) -> None:
            state = stream.init_stream(params, KEEP_45, capacity=CAPACITY)
            for window in source:
                state = stream.feed(params, state, window)
            jax.block_until_ready(state)

        def in_sequence() -> None:
            feed(media())

        def together() -> None:
            feed(windows(clip, spec))

        ours, theirs = bench.alternate(together, in_sequence)
        began = time.perf_counter()
        count = len(media())
        decoding = time.perf_counter() - began
    note = (
        f"{count} windows of {CLIP_SECONDS} s; decoding alone {decoding / count * 1e3:.0f} ms each"
    )
    return bench.timed(
        "stream.overlap", ours, theirs, "decode first, then feed", per=count, note=note
    )


def _attention_share(bench: Bench, of: Stream, length: int) -> float:
    """Share of attention in a window's operations, which include encoders and matrices."""
    text, block = bench.config.text, of.state.prefill_config.window_capacity
    attended = next(n for n in attention.length_buckets(CAPACITY) if n >= length + block)
    own = 4.0 * text.layers * text.heads * text.head_dim * attended * block
    rest = 2.0 * text.layers * layer_weights(text) * block + flops.encoder_flops(bench.config, 1)
    return own / (own + rest)
