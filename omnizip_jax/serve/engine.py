"""One thread owns the device, and gives everybody a turn.

Work comes in steps: a window of a session, or its beginning; for an answer the reading of a
question, a block of a clip through the encoders, or its prefill; and up to ``DECODE_BLOCK`` tokens
of one answer, or of several in lanes, side by side. Windows and steps of answers take turns, one of
each. Sessions begin first; so does a question about one, whose first step reads what came before
it. So a window that is due waits for at most one step, and for the windows that came before it with
one step each; and a step of an answer waits for at most one window, and for one step of every other
answer, or of several together, with one window each. How many sessions and answers there can be is
bounded.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from omnizip_jax.compression import Method
from omnizip_jax.inference import generation as lanes
from omnizip_jax.inference.context import Context, fork
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import GenerationState, begin
from omnizip_jax.inference.kv_cache import evict
from omnizip_jax.inference.streaming import feed, init_stream
from omnizip_jax.models.params import Params
from omnizip_jax.serve.cache import Kept
from omnizip_jax.serve.failure import Failure, explained
from omnizip_jax.serve.job import Job, say
from omnizip_jax.serve.limits import Limits, MiB
from omnizip_jax.serve.metrics import Metrics
from omnizip_jax.serve.session import (
    Expired,
    News,
    Session,
    Waiting,
    WindowRead,
    WindowSkipped,
    window_read,
)
from omnizip_jax.serve.session_store import Left, Shelf
from omnizip_jax.types import Window

_LOG = logging.getLogger("omnizip.serve")


def context_bytes(context: Context) -> int:
    """Of its cache."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(context.cache))


class Engine:
    """Sessions and answers on one device.

    Args:
        params: from ``omnizip_jax.load``.
        method: of sessions and answers that name none.
        limits: what exceeds them is refused with a ``Failure`` of status 503.
        shelf: where sessions go whose owners have gone; None lets go of them.

    Attributes:
        contexts: of clips that were read, by what they are.
        ready: the programs are compiled.
    """

    def __init__(
        self,
        params: Params,
        method: Method,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        metrics: Metrics | None = None,
        shelf: Shelf | None = None,
    ):
        self.params, self.method, self.limits, self.shelf = params, method, limits, shelf
        self.metrics = metrics or Metrics()
        self.contexts: Kept[Context] = Kept(limits.kept_bytes)
        self.ready = threading.Event()
        self._changed = threading.Condition(threading.RLock())
        self._sessions: list[Session] = []
        self._first: deque[Job] = deque()  # their next step comes before all else
        self._jobs: deque[Job] = deque()
        self._answers = 0  # among both
        self._held = 0  # bytes, by answers
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._writing = ThreadPoolExecutor(1, "shelf")

    def start(self, warm: bool = True) -> None:
        """Begin to work.

        Args:
            warm: compile the programs of a session first.
        """
        if not warm:
            self.ready.set()
        self._thread.start()

    def close(self, wait: float | None = None) -> None:
        """Take nothing more, finish the answers, end the sessions.

        Args:
            wait: seconds to wait for that; None: as long as it takes.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(wait)
        self._writing.shutdown()

    def submit(
        self, steps: Iterator[Any], tell: Callable[[Any], Any], *, first: bool = False
    ) -> Job:
        """An answer for the device to make; see ``Job``.

        Args:
            first: its first step comes before all else.

        Raises:
            Failure: there is too much already, or the server is closing.
        """
        job = Job(steps, tell, answer=True)
        with self._changed:
            if self._answers >= self.limits.answers:
                raise self._refusal(f"{self.limits.answers} answers are in the making")
            self._check_open()
            (self._first if first else self._jobs).append(job)
            self._answers += 1
            self._count()
            self._changed.notify_all()
        return job

    def open(
        self,
        tell: Callable[[News], Any],
        method: Method | None = None,
        **settings: Any,
    ) -> Session:
        """A new session; its memory is set aside at once, its programs run later.

        Args:
            tell: see ``Session``.
            settings: for ``init_stream``.

        Raises:
            Failure: there are too many, or the server is closing.
        """
        session = self._admitted(tell)
        settings = {
            "capacity": self.limits.capacity,
            "text_slots": self.limits.text_slots,
            **settings,
        }
        self._begin(
            session,
            lambda: init_stream(self.params, method or self.method, **settings),
        )
        return session

    def fork(self, session: Session, tell: Callable[[News], Any]) -> Session:
        """A second session that remembers what the first one does now.

        Raises:
            Failure: as ``open``; or the session has ended.
        """
        copy = self._admitted(tell)
        copy.arrived, copy.skipped = session.arrived - len(session.waiting), session.skipped

        def make() -> Context:
            copy.units = dict(session.units)
            return fork(self.context_of(session))

        self._begin(copy, make)
        return copy

    def resume(self, left: Left, tell: Callable[[News], Any]) -> Session:
        """A session goes on that its owner had left.

        Raises:
            Failure: as ``open``.
        """
        session = self._admitted(tell)
        session.arrived, session.skipped = left.arrived, left.skipped
        session.units = left.units
        self._begin(session, lambda: left.context)
        return session

    def push(self, session: Session, window: Window) -> None:
        """The next window of a session. Where too many wait, the oldest is dropped, and told."""
        dropped = None
        with self._changed:
            if session.ended:
                return
            session.used = time.monotonic()
            session.waiting.append(Waiting(window, session.arrived, session.used))
            session.arrived += 1
            if len(session.waiting) > self.limits.windows:
                dropped = session.waiting.popleft()
                session.skipped += 1
                self.metrics.windows_skipped.inc()
            self._count()
            self._changed.notify_all()
        if dropped is not None:
            say(session.tell, WindowSkipped(dropped.number, session.skipped))

    def touch(self, session: Session) -> None:
        """The session is in use."""
        session.used = time.monotonic()

    def end(self, session: Session, reason: str | None = None) -> None:
        """Let go of a session. May be called twice.

        Args:
            reason: what its owner is told; None: nothing, as it knows.
        """
        with self._changed:
            if session.ended:
                return
            session.ended = True
            session.context = None
            session.waiting.clear()
            self._sessions.remove(session)
            self._count()
        if reason is not None:
            say(session.tell, Expired(reason))

    def leave(self, session: Session) -> None:
        """The owner has gone: put the session on the shelf, if there is one, and let go of it."""
        if self.shelf is None or session.name is None:
            return self.end(session)

        def steps() -> Iterator[None]:
            yield from ()  # all of it is one step
            self._put_away(session)

        with self._changed:
            self._first.append(Job(steps(), lambda _: None))
            self._changed.notify_all()

    def context_of(self, session: Session) -> Context:
        """What a session remembers; on the engine's thread.

        Raises:
            Failure: the session has ended.
        """
        if session.context is None:
            raise Failure("the session has ended", 404)
        return session.context

    def go_on(self, session: Session, context: Context) -> None:
        """Replace what a session remembers, unless it has ended; on the engine's thread."""
        with self._changed:
            if not session.ended:
                session.context = context
            self._count()

    @contextlib.contextmanager
    def holding(self, context: Context) -> Iterator[None]:
        """Room for a copy of what an answer is about, as long as it lasts; on the engine's thread.

        Raises:
            Failure: there is none.
        """
        size, most = context_bytes(context), self.limits.answer_bytes
        if self._held + size > most:
            raise self._refusal(
                f"answers hold {self._held / MiB:.0f} of {most / MiB:.0f} MiB, and this one wants "
                f"{size / MiB:.0f}"
            )
        self._held += size
        self.metrics.answer_bytes.set(self._held)
        try:
            yield
        finally:
            self._held -= size
            self.metrics.answer_bytes.set(self._held)

    def read_due(self, session: Session, arrived: int) -> None:
        """Read the windows that came before the one of that number; on the engine's thread."""
        while session.waiting and session.waiting[0].number < arrived:
            self._read(session)

    def _admitted(self, tell: Callable[[News], Any]) -> Session:
        session = Session(tell)
        with self._changed:
            if len(self._sessions) >= self.limits.sessions:
                raise self._refusal(f"{self.limits.sessions} sessions are open")
            self._check_open()
            self._sessions.append(session)
            self._count()
        return session

    def _begin(self, session: Session, make: Callable[[], Context]) -> None:
        def steps() -> Iterator[None]:
            yield from ()  # all of it is one step
            if session.ended:
                return
            context = jax.block_until_ready(make())
            with self._changed:
                if not session.ended:
                    session.context = context
                    session.size = context_bytes(context)
                    self._count()

        def told(failure: Failure | None) -> None:
            if failure is not None:
                self.end(session, str(failure))

        with self._changed:
            self._first.append(Job(steps(), told))
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closing:
            raise self._refusal("the server is closing")

    def _refusal(self, reason: str) -> Failure:
        self.metrics.refused.inc()
        return Failure(f"{reason}; try again later", 503)

    def _count(self) -> None:
        self.metrics.sessions.set(len(self._sessions))
        self.metrics.answers.set(self._answers)
        self.metrics.windows_waiting.set(sum(len(each.waiting) for each in self._sessions))
        self.metrics.session_bytes.set(sum(each.size for each in self._sessions))

    def _run(self) -> None:
        if not self.ready.is_set():
            self._warm()
        while True:
            with self._changed:
                self._changed.wait_for(self._wanted, 1.0)
                if self._closing and not self._answers:
                    break
                session = None if self._first else self._due()
            if session is not None:
                self._read(session)
            self._step()
            self._expire()
        for session in tuple(self._sessions):
            self._put_away(session, "the server is closing")

    def _wanted(self) -> bool:
        return bool(self._first or self._jobs or self._due() or self._closing)

    def _due(self) -> Session | None:
        """The session whose window came first."""
        begun = (s for s in self._sessions if s.waiting and s.context is not None)
        return min(begun, key=lambda s: s.waiting[0].since, default=None)

    def _step(self) -> None:
        turn = self._next()
        if not turn:
            return
        began = time.perf_counter()
        jobs = [job for job, _ in turn]
        replies = [generation for _, generation in turn if generation is not None]
        if replies:
            made = zip(jobs, self._tokens(replies), strict=True)
            more = [job.take(generation) for job, generation in made]
        else:
            more = [jobs[0].step()]
        self.metrics.step.observe(time.perf_counter() - began)
        with self._changed:
            for job, goes_on in zip(jobs, more, strict=True):
                if goes_on:
                    self._jobs.append(job)
                else:
                    self._answers -= job.answer
            self._count()

    def _next(self) -> list[tuple[Job, GenerationState | None]]:
        """Whose turn it is: a job by itself, or replies that go side by side."""
        with self._changed:
            queue = self._first or self._jobs
            if not queue:
                return []
            waiting = [(job, job.wanting) for job in queue]
            kinds = [
                job if generation is None else lanes.kind(generation) for job, generation in waiting
            ]
            turn = [waiting[number] for number in lanes.together(kinds)]
            for job, _ in turn:
                queue.remove(job)
            return turn

    def _tokens(self, replies: list[GenerationState]) -> Sequence[GenerationState | Exception]:
        """The next tokens of all; what goes wrong goes wrong for all."""
        self.metrics.lanes.inc(len(replies))
        self.metrics.decode_steps.inc()
        try:
            return lanes.step_lanes(self.params, replies)
        except Exception as error:
            return [error] * len(replies)

    def _read(self, session: Session) -> None:
        """The oldest waiting window of a session."""
        with self._changed:
            context = session.context
            if context is None or not session.waiting:
                return
            waiting = session.waiting.popleft()
        began = time.perf_counter()
        waited = time.monotonic() - waiting.since
        try:
            before = np.asarray(context.seen), np.asarray(context.kept)
            context = jax.block_until_ready(feed(self.params, context, waiting.window))
            facts = window_read(session, before, context, waiting)
        except Exception as error:
            failure = explained(error)
            if failure.status == 500:
                _LOG.exception("a window could not be read")
            self.end(session, str(failure))
            return
        self.go_on(session, context)
        self.metrics.windows.inc()
        self.metrics.window_wait.observe(waited)
        self.metrics.media_tokens.inc(facts["audio"] + facts["video"])
        self.metrics.media_tokens_kept.inc(facts["audio_kept"] + facts["video_kept"])
        if not session.ended:
            took = time.perf_counter() - began
            say(session.tell, WindowRead(**facts, waited=waited, took=took))

    def _expire(self) -> None:
        idle = self.limits.idle
        for session in tuple(self._sessions):
            if time.monotonic() - session.used > idle:
                self._put_away(session, f"the session was idle for {idle:g} s")

    def _put_away(self, session: Session, reason: str | None = None) -> None:
        """End a session; on the shelf, if there is one, it waits for its owner."""
        if self.shelf is not None and session.name is not None:
            self.read_due(session, session.arrived)
            if session.context is not None:
                left = Left(session.context, session.arrived, session.skipped, session.units)
                self._writing.submit(self.shelf.put, session.name, left)
        self.end(session, reason)

    def _warm(self) -> None:
        """Compile what a session of the default method needs, and what its answers do in lanes."""
        limits = self.limits
        try:
            state = init_stream(
                self.params, self.method, capacity=limits.capacity, text_slots=limits.text_slots
            )
            state = feed(self.params, state, Window.empty(state.prefill_config.spec))
            for count in (1, *lanes.LANES):
                if count <= min(limits.answers, limits.answer_bytes // context_bytes(state)):
                    answers = [
                        begin(self.params, state, "?", SamplingParams(1)) for _ in range(count)
                    ]
                    lanes.step_lanes(self.params, answers)
            jax.block_until_ready(evict(state).cache)
        except ValueError as error:  # of the settings, or the method needs whole clips
            _LOG.warning("live sessions cannot begin: %s", error)
        self.ready.set()
