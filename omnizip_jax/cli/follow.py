"""Follow a source to its end: every window is fed, every question answered at its time."""

from __future__ import annotations

import dataclasses
import queue
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from omnizip_jax.cli.times import END
from omnizip_jax.compression import Method
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.generation import TokenCounts, ask
from omnizip_jax.inference.kv_cache import evict
from omnizip_jax.inference.streaming import feed, init_stream
from omnizip_jax.media import WindowStream
from omnizip_jax.models.params import Params
from omnizip_jax.types import Window


@dataclasses.dataclass(frozen=True)
class WindowRead:
    """A window is in the cache.

    Attributes:
        time: seconds of the stream at its end.
        audio, audio_kept, video, video_kept: tokens of this window.
        audio_retention, video_rate: S_a and rho_v of this window.
        fill: share of the cache in use.
        milliseconds: from the window on the host to the cache; decoding runs ahead of it.
        real_time_factor: how many times faster than the stream that is.
        skipped: windows dropped so far because feeding was too slow.
    """

    time: float
    audio: int
    audio_kept: int
    video: int
    video_kept: int
    audio_retention: float
    video_rate: float
    fill: float
    milliseconds: float
    real_time_factor: float
    skipped: int


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question has its answer.

    Attributes:
        time: seconds of the stream that had come when it was asked.
        tokens: of the answer.
        milliseconds: to the first token, and for all of it.
    """

    time: float
    question: str
    text: str
    tokens: int
    milliseconds_to_first_token: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class Refused:
    """A question that cannot be asked; the stream goes on."""

    time: float
    question: str
    message: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """The stream is closed.

    Attributes:
        reason: the source has ended, the user has stopped it, or it failed.
        time: seconds of the stream.
        windows: fed.
        skipped, incomplete, late_frames: what was lost, as ``WindowStream`` counts it.
        answers: how many questions were answered.
        audio, audio_kept, video, video_kept: tokens of the whole stream.
        milliseconds, real_time_factor: median of the windows; None without windows.
    """

    reason: Literal["end", "stopped", "error"]
    time: float
    windows: int
    skipped: int
    incomplete: int
    late_frames: int
    answers: int
    audio: int
    audio_kept: int
    video: int
    video_kept: int
    milliseconds: float | None
    real_time_factor: float | None


Event: TypeAlias = WindowRead | Answered | Refused | Ended


class Questions:
    """Questions with a time, and questions that are typed meanwhile.

    Args:
        timed: (seconds of the stream, question); ``END`` is after the last window.
    """

    def __init__(self, timed: Iterable[tuple[float, str]] = ()):
        self._timed = sorted(timed, key=lambda question: question[0])
        self._typed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, question: str) -> None:
        """Ask as soon as the current window is in; from any thread. Empty lines are nothing."""
        if question.strip():
            self._typed.put(question.strip())

    def due(self, now: float) -> Iterable[str]:
        """Take out what is to be asked at ``now``, in order."""
        while self._timed and self._timed[0][0] <= now:
            yield self._timed.pop(0)[1]
        while not self._typed.empty():
            yield self._typed.get()


def begin_stream(params: Params, compression: Method | None, **settings: Any) -> Context:
    """``init_stream``, after an empty window, a question and an eviction compiled its programs.

    So the first window is as fast as the others, the cache overflows without a pause, and a live
    source is not kept waiting.
    """
    state = init_stream(params, compression, **settings)
    state = feed(params, state, Window.empty(state.prefill_config.spec))
    ask(params, state, "?", max_new_tokens=1)
    jax.block_until_ready(evict(state).cache)
    del state  # two caches need not exist at once
    return init_stream(params, compression, **settings)


def follow(
    params: Params,
    state: Context,
    source: WindowStream,
    questions: Questions,
    on_event: Callable[[Event], None],
    *,
    on_text: Callable[[str], None] | None = None,
    on_state: Callable[[Context], None] | None = None,
    keep: bool = False,
    max_new_tokens: int = 128,
) -> Context:
    """Feed a source until it ends, answering what is asked; the source is closed in any case.

    A question is answered once the window in which its time lies has been fed; those whose time
    did not come, after the last window.

    Args:
        source: from ``omnizip_jax.windows``.
        on_event: called with all that happens, ``Ended`` at last.
        on_text: called with each piece of an answer as it is made.
        on_state: called with the state after every window, before its event; to look at, for the
            next window uses it up.
        keep: remember questions and answers.
        max_new_tokens: of each answer.

    Raises:
        ValueError: the source fails. ``KeyboardInterrupt`` passes through; both after ``Ended``.
    """
    seconds = state.prefill_config.spec.seconds
    times: list[float] = []
    now, answers, reason = 0.0, 0, "error"
    before = counts = _counts(state)

    def answer_due(limit: float) -> None:
        nonlocal state, answers
        for question in questions.due(limit):
            try:
                answer, state = ask(
                    params,
                    state,
                    question,
                    keep=keep,
                    max_new_tokens=max_new_tokens,
                    on_text=on_text,
                )
            except ValueError as error:  # the state is still good
                on_event(Refused(now, question, str(error)))
                continue
            answers += 1
            first, rest = answer.seconds["prefill"], answer.seconds["generation"]
            tokens = answer.counts.generated
            on_event(
                Answered(now, question, answer.text, tokens, 1e3 * first, 1e3 * (first + rest))
            )

    try:
        for window in source:
            began = time.perf_counter()
            state = jax.block_until_ready(feed(params, state, window))
            times.append(time.perf_counter() - began)
            before, counts, trace = counts, _counts(state), state.trace
            assert trace is not None  # a window was fed
            now = (source.time or 0.0) + seconds
            if on_state:
                on_state(state)
            on_event(
                WindowRead(
                    time=now,
                    audio=counts.audio - before.audio,
                    audio_kept=counts.audio_kept - before.audio_kept,
                    video=counts.video - before.video,
                    video_kept=counts.video_kept - before.video_kept,
                    audio_retention=float(trace.audio_retention),
                    video_rate=float(trace.video_rate),
                    fill=state.fill,
                    milliseconds=1e3 * times[-1],
                    real_time_factor=seconds / times[-1],
                    skipped=source.skipped,
                )
            )
            answer_due(now)
        answer_due(END)
        reason = "end"
    except KeyboardInterrupt:
        reason = "stopped"
        raise
    finally:
        source.close()
        median = statistics.median(times) if times else None
        on_event(
            Ended(
                reason=reason,
                time=now,
                windows=len(times),
                skipped=source.skipped,
                incomplete=source.incomplete,
                late_frames=source.late_frames,
                answers=answers,
                audio=counts.audio,
                audio_kept=counts.audio_kept,
                video=counts.video,
                video_kept=counts.video_kept,
                milliseconds=median and 1e3 * median,
                real_time_factor=median and seconds / median,
            )
        )
    return state


def _counts(state: Context) -> TokenCounts:
    seen, kept = np.asarray(state.seen).tolist(), np.asarray(state.kept).tolist()
    return TokenCounts(seen[0], kept[0], seen[1], kept[1], text=0, generated=0)
