"""Suite ``serve``: batched answers, requests per second, and live sessions, through the engine.

HTTP and the decoding of media are not included.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import presets
from benchmarks.harness import Row, Timing, alternate
from benchmarks.noise_clip import FULL, KEEP_45, NoiseClip, Prefill
from benchmarks.run_state import Bench
from omnizip_jax.compression import Method
from omnizip_jax.inference.decode import (
    DECODE_BLOCK,
    DecodeState,
    SamplingParams,
    generate_tokens,
)
from omnizip_jax.inference.generation import BATCH_SIZES
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.serve.answer_steps import (
    AnswerDone,
    AnswerRequest,
    answer_about_clips,
    answer_about_session,
)
from omnizip_jax.serve.config import Limits
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.sessions import Session, WindowRead

QUESTION = "What happens in this video, and what can be heard?"
CONCURRENCIES = (1, 4, 16)
REQUESTS = 16  # per measurement
ANSWER = 32  # tokens of an answer
LIVE = 4  # sessions
HISTORY = 8  # windows in a session before the questions
QUESTIONS = 32  # to a live session
FEED = 24  # windows per measurement
CAPACITY = 8192
WAIT = 600.0  # s, timeout


def run(bench: Bench) -> Iterator[Row]:
    yield from _batches(bench)
    params = presets.random_params(bench.config, bench.dtype, bench.weights)
    with _engine(params) as engine:
        yield from _requests(bench, engine)
        yield from _live(bench, engine)


def _batches(bench: Bench) -> Iterator[Row]:
    """A full batch of answers, decoded together and one by one."""
    clip, count = NoiseClip(bench), BATCH_SIZES[0]
    for name, method in (("batch", KEEP_45), ("batch_full", FULL)):
        bench.say(f"serve: {count} answers to {bench.windows} windows, {method}")
        prefill = clip.prefill(method, DECODE_BLOCK * bench.most_rounds)
        batched, alone = _Answers(bench, prefill, count), _Answers(bench, prefill, count)
        together, single = bench.alternate(batched.step_batch, alone.step_each)
        made = count * DECODE_BLOCK
        yield bench.timed(
            f"serve.{name}",
            together,
            single,
            "one by one",
            per=made,
            note=f"per token of {count} answers after {prefill.tokens} tokens each; "
            f"{made / together.median:.0f} against {made / single.median:.0f} tokens a second",
        )


class _Answers:
    """Answers of which every call decodes ``DECODE_BLOCK`` more tokens each."""

    def __init__(self, bench: Bench, prefill: Prefill, count: int):
        self.weights = bench.weights["text"]
        self.states: tuple[DecodeState, ...] = tuple(
            prefill(prefill.clip.encoded) for _ in range(count)
        )
        self.sampling, self.limit = SamplingParams().sampling, jnp.int32(DECODE_BLOCK)
        self.static: Any = {
            "config": bench.config.text,
            "steps": DECODE_BLOCK,
            "end_tokens": (),
            "dtype": bench.dtype,
            "backend": Backend.of(self.weights),
        }

    def step_batch(self) -> None:
        count = len(self.states)
        *_, self.states = generate_tokens(
            self.weights,
            self.states,
            [self.sampling] * count,
            [self.limit] * count,
            **self.static,
        )
        jax.block_until_ready(self.states)

    def step_each(self) -> None:
        states = []
        for state in self.states:
            *_, (state,) = generate_tokens(
                self.weights, [state], [self.sampling], [self.limit], **self.static
            )
            states.append(jax.block_until_ready(state))
        self.states = tuple(states)


@contextlib.contextmanager
def _engine(params: Params) -> Iterator[Engine]:
    answers = 2 * max(CONCURRENCIES)
    limits = Limits(capacity=CAPACITY, answers=answers, clip_cache_bytes=1, idle=WAIT)
    engine = Engine(params, KEEP_45, limits)
    engine.start(warmup=False)
    try:
        yield engine
    finally:
        engine.close(WAIT)


def _requests(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Clips that are not cached, with one question each."""
    clip = presets.random_clip(bench.windows // 2, engine.params.config)
    request = AnswerRequest(QUESTION, sampling_params=SamplingParams(ANSWER))

    def serve(method: Method, concurrency: int, requests: int = REQUESTS) -> None:
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def submit() -> None:
            steps = answer_about_clips(engine, [clip], [0], None, method, request, object())
            engine.submit(steps, lambda event: ended.put(event) if _is_last(event) else None)

        for _ in range(concurrency):
            submit()
        for number in range(requests):
            _check(ended.get(timeout=WAIT))
            if number + concurrency < requests:
                submit()

    bench.say(f"serve: {REQUESTS} clips of {bench.windows // 2} windows, compiling")
    for method in (FULL, KEEP_45):
        for concurrency in sorted(BATCH_SIZES):
            serve(method, concurrency, concurrency)
    for concurrency in CONCURRENCIES:
        bench.say(f"serve: concurrency {concurrency}")
        packed, full = alternate(
            lambda c=concurrency: serve(KEEP_45, c),
            lambda c=concurrency: serve(FULL, c),
            repeats=1,  # of many requests
            warm=0,
        )
        yield bench.timed(
            f"serve.requests_{concurrency}",
            packed,
            full,
            "all tokens",
            per=REQUESTS,
            note=f"a request at 45 %, {concurrency} at once, {ANSWER} tokens of answer; "
            f"{REQUESTS / packed.median:.2f} against {REQUESTS / full.median:.2f} a second",
        )


def _live(bench: Bench, engine: Engine) -> Iterator[Row]:
    """Time to first token of sessions whose windows arrive together, and windows per second."""
    window = jax.tree.map(lambda x: x[0], presets.random_windows(1, engine.params.config))
    first, rates = {}, {}
    for name, method in (("45", KEEP_45), ("full", FULL)):
        bench.say(f"serve: {LIVE} live sessions, {method}")
        sessions = [_Live(engine, method, window) for _ in range(LIVE)]
        for live in sessions:
            live.feed(HISTORY)
        sessions[0].ask()  # compiles
        seconds = []
        for number in range(QUESTIONS):
            for live in sessions:
                live.push()  # all at the same time, as cameras that started together
            seconds.append(sessions[number % LIVE].ask())
            for live in sessions:
                live.wait_until_read()
        first[name] = np.array(seconds)
        for live in sessions:
            live.end()

        def feed(method: Method = method) -> None:
            live = _Live(engine, method, window)
            live.feed(FEED)
            live.end()

        rates[name] = feed
    for name, percent in (("median", 50), ("p99", 99)):
        ours, full = (float(np.percentile(first[each], percent)) for each in ("45", "full"))
        yield bench.timed(
            f"serve.first_token_{name}",
            Timing((ours,)),
            Timing((full,)),
            "all tokens",
            note=f"from the last frame, of {QUESTIONS} questions to {LIVE} live sessions whose "
            "windows come at the same moment",
        )
    packed, full = bench.alternate(rates["45"], rates["full"])
    yield bench.timed(
        "serve.window",
        packed,
        full,
        "all tokens",
        per=FEED,
        note=f"{FEED / packed.median:.1f} windows a second, where a session has one in "
        f"{engine.params.config.spec.seconds} s",
    )


class _Live:
    """A session and its events."""

    def __init__(self, engine: Engine, method: Method, window: Any):
        self.engine, self.window, self.read = engine, window, 0
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.session: Session = engine.open(self.events.put, method)

    def push(self) -> None:
        self.engine.push(self.session, self.window)

    def wait_until_read(self) -> None:
        """Wait until all windows were read."""
        while self.read < self.session.arrived:
            event = self.events.get(timeout=WAIT)
            if isinstance(event, RequestError):
                raise event
            self.read += isinstance(event, WindowRead)

    def feed(self, count: int) -> None:
        """Push windows one by one, each after the one before was read."""
        for _ in range(count):
            self.push()
            self.wait_until_read()

    def ask(self) -> float:
        """Seconds to the first token of an answer about all pushed windows."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request = AnswerRequest(QUESTION, sampling_params=SamplingParams(1))
        began = time.perf_counter()
        steps = answer_about_session(self.engine, self.session, self.session.arrived, [], request)
        self.engine.submit(
            steps, lambda event: ended.put(event) if _is_last(event) else None, first=True
        )
        _check(ended.get(timeout=WAIT))
        return time.perf_counter() - began

    def end(self) -> None:
        self.engine.end(self.session)


def _is_last(event: Any) -> bool:
    return isinstance(event, AnswerDone | Exception)


def _check(event: Any) -> None:
    if isinstance(event, Exception):
        raise AssertionError(str(event))
