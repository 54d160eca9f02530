"""The loop of a stream: feed windows, answer questions at their time, report events."""

from __future__ import annotations

import dataclasses
import queue
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from omnizip_jax.cli.arguments import END_OF_STREAM
from omnizip_jax.compression import Method
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.generation import MediaCounts, ask, media_counts
from omnizip_jax.inference.kv_cache_capacity import evict
from omnizip_jax.inference.streaming import feed, init_stream
from omnizip_jax.media import WindowStream
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.types import Window

BARS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True)
class WindowEvent(MediaCounts):
    """A window was added to the cache; the counts are those of its tokens.

    Attributes:
        time: stream time at its end, in seconds.
        audio_retention, video_rate: S_a and rho_v of this window.
        fill: share of the cache in use.
        milliseconds: from the window on the host to the cache, without decoding the media.
        real_time_factor: duration of the window divided by that time.
        skipped: windows skipped so far because feeding was too slow.
    """

    time: float
    audio_retention: float
    video_rate: float
    fill: float
    milliseconds: float
    real_time_factor: float
    skipped: int


@dataclasses.dataclass(frozen=True)
class AnswerEvent:
    """A question was answered.

    Attributes:
        time: stream time when it was asked, in seconds.
        tokens: length of the answer.
        milliseconds_to_first_token, milliseconds: from the question.
    """

    time: float
    question: str
    text: str
    tokens: int
    milliseconds_to_first_token: float
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class RefusedEvent:
    """A question could not be asked; the stream continues."""

    time: float
    question: str
    message: str


@dataclasses.dataclass(frozen=True)
class EndEvent(MediaCounts):
    """The stream was closed; the counts are those of the whole stream.

    Attributes:
        reason: the source ended, the user stopped it, or it failed.
        time: stream time in seconds.
        windows: number of windows fed.
        skipped, incomplete, late_frames: losses, as counted by ``WindowStream``.
        answers: number of answered questions.
        milliseconds, real_time_factor: median of the windows; None without windows.
    """

    reason: Literal["end", "stopped", "error"]
    time: float
    windows: int
    skipped: int
    incomplete: int
    late_frames: int
    answers: int
    milliseconds: float | None
    real_time_factor: float | None


Event: TypeAlias = WindowEvent | AnswerEvent | RefusedEvent | EndEvent


class QuestionQueue:
    """Questions with a stream time, and questions that are typed while the stream runs.

    Args:
        timed: (stream time in seconds, question); ``END_OF_STREAM`` is after the last window.
    """

    def __init__(self, timed: Iterable[tuple[float, str]] = ()):
        self._timed = sorted(timed, key=lambda question: question[0])
        self._typed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, question: str) -> None:
        """Ask after the current window; thread-safe. Blank lines are ignored."""
        if question.strip():
            self._typed.put(question.strip())

    def due(self, now: float) -> Iterable[str]:
        """Remove and return the questions that are due at stream time ``now``, in order."""
        while self._timed and self._timed[0][0] <= now:
            yield self._timed.pop(0)[1]
        while not self._typed.empty():
            yield self._typed.get()


class RetentionLog:
    """Tokens that the cache retains of each window; called with the state after every window.

    Attributes:
        retained: after every window, the retained tokens of each window so far.
    """

    def __init__(self):
        self._units: list[int] = []
        self.retained: list[list[int]] = []

    def __call__(self, state: Context) -> None:
        """Record the state after a window."""
        self._units.append(int(state.state.unit) - 1)
        retained = state.retained
        self.retained.append([retained.get(unit, 0) for unit in self._units])

    @property
    def initial(self) -> list[int]:
        """The tokens of each window when it was added."""
        return [retained[-1] for retained in self.retained]

    def count(self, windows: slice) -> tuple[int, int]:
        """Tokens of some windows: in the cache now, and when they were added."""
        return sum(self.retained[-1][windows]), sum(self.initial[windows])

    def bars(self, total: int) -> str:
        """A bar for the retained share of each window, and dots up to ``total`` windows."""
        shares = zip(self.retained[-1], self.initial, strict=True)
        heights = [-(-(len(BARS) - 1) * now // max(initial, 1)) for now, initial in shares]
        return "".join(BARS[height] for height in heights).ljust(total, "·")


def init_compiled_stream(params: Params, compression: Method | None, **settings: Any) -> Context:
    """``init_stream`` with its programs compiled: no window, question or eviction waits for XLA.

    An empty window, a question and an eviction compile them on a state that is discarded.
    """
    state = init_stream(params, compression, **settings)
    state = feed(params, state, Window.empty(state.prefill_config.spec))
    ask(params, state, "?", max_new_tokens=1)
    jax.block_until_ready(evict(state).cache)
    del state  # frees its cache before the next one is allocated
    return init_stream(params, compression, **settings)


def feed_source(
    params: Params,
    state: Context,
    source: WindowStream,
    questions: QuestionQueue,
    on_event: Callable[[Event], None],
    *,
    on_text: Callable[[str], None] | None = None,
    on_state: Callable[[Context], None] | None = None,
    keep: bool = False,
    max_new_tokens: int = 128,
) -> Context:
    """Feed a source until it ends and answer the questions; the source is closed in any case.

    A question is answered once the window that contains its time has been fed; later times, after
    the last window.

    Args:
        source: from ``omnizip_jax.windows``.
        on_event: called with every event; the last one is an ``EndEvent``.
        on_text: called with each piece of an answer as it is generated.
        on_state: called with the state after every window, before its event. The next ``feed``
            donates the state's buffers, so do not keep it.
        keep: keep questions and answers in the context.
        max_new_tokens: of each answer.

    Raises:
        ValueError: the source fails. ``KeyboardInterrupt`` passes through; both after ``EndEvent``.
    """
    seconds = state.prefill_config.spec.seconds
    times: list[float] = []
    now, answers, reason = 0.0, 0, "error"
    total = np.stack([state.seen, state.kept])
    settings: dict[str, Any] = {"keep": keep, "max_new_tokens": max_new_tokens, "on_text": on_text}

    def answer_due(limit: float) -> None:
        nonlocal state, answers
        for question in questions.due(limit):
            try:
                answer, state = ask(params, state, question, **settings)
            except ValueError as error:  # the state is still valid
                on_event(RefusedEvent(now, question, str(error)))
                continue
            answers += 1
            first = 1e3 * answer.seconds["prefill"]
            last = first + 1e3 * answer.seconds["generation"]
            on_event(AnswerEvent(now, question, answer.text, answer.counts.generated, first, last))

    try:
        for window in source:
            start = time.perf_counter()
            state = jax.block_until_ready(feed(params, state, window))
            times.append(time.perf_counter() - start)
            before, total, trace = total, np.stack([state.seen, state.kept]), state.trace
            assert trace is not None  # a window was fed
            now = (source.time or 0.0) + seconds
            if on_state:
                on_state(state)
            on_event(
                WindowEvent(
                    time=now,
                    **media_counts(*(total - before)),
                    audio_retention=float(trace.audio_retention),
                    video_rate=float(trace.video_rate),
                    fill=state.fill,
                    milliseconds=1e3 * times[-1],
                    real_time_factor=seconds / times[-1],
                    skipped=source.skipped,
                )
            )
            answer_due(now)
        answer_due(END_OF_STREAM)
        reason = "end"
    except KeyboardInterrupt:
        reason = "stopped"
        raise
    finally:
        source.close()
        median = statistics.median(times) if times else None
        on_event(
            EndEvent(
                reason=reason,
                time=now,
                windows=len(times),
                skipped=source.skipped,
                incomplete=source.incomplete,
                late_frames=source.late_frames,
                answers=answers,
                **media_counts(*total),
                milliseconds=median and 1e3 * median,
                real_time_factor=median and seconds / median,
            )
        )
    return state


def format_time(seconds: float) -> str:
    """Stream time as 00:30 or 1:02:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
