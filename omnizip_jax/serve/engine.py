"""Scheduler of live sessions and answers on one device.

One thread owns the device and runs steps: adding a window to a session, creating a session, and for
an answer encoding eight windows of a clip, a prefill, or decoding up to ``DECODE_BLOCK`` tokens
(a batch of answers with equal cache shapes decodes together). Windows and answer steps alternate.
Steps submitted as ``first`` precede both: the creation of a session, and the first step of a
question about one, which reads the windows before it. So a queued window waits for the windows that
arrived before it and one step per such window; an answer step waits for one step of every other
answer, and one window per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from cachetools import LRUCache

from omnizip_jax.compression import Method
from omnizip_jax.inference import generation as batches
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import GenerationState, begin
from omnizip_jax.inference.kv_cache_capacity import evict
from omnizip_jax.inference.streaming import change_method, feed, init_stream
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.serve.config import Limits, MiB
from omnizip_jax.serve.errors import RequestError, as_request_error, invalid_input
from omnizip_jax.serve.jobs import Job, event_queue, notify
from omnizip_jax.serve.metrics import Metrics
from omnizip_jax.serve.sessions import (
    QueuedWindow,
    Session,
    SessionEvent,
    SessionStore,
    WindowSkipped,
    window_read,
)
from omnizip_jax.types import Window

_LOG = logging.getLogger("omnizip.serve")
T = TypeVar("T")


def context_bytes(context: Context) -> int:
    """Size of a context's cache."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(context.cache))


def _step(function: Callable[[], T]) -> Iterator[T]:
    """A step that calls a function; what it returns is the event."""
    return (function() for _ in range(1))


class Engine:
    """Runs live sessions and answers on one device.

    Args:
        params: from ``omnizip_jax.load``.
        method: default of sessions and answers.
        limits: beyond them requests are refused with status 503.
        store: keeps sessions whose clients have disconnected; None ends them.
        on_failure: called when the device thread ends with an error.

    Attributes:
        ready: set once the programs are compiled.
        failed: the device thread has ended with an error; nothing can be served any more.
        clip_contexts: contexts of recent clips, least recently used first out.
    """

    def __init__(
        self,
        params: Params,
        method: Method,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        store: SessionStore | None = None,
        on_failure: Callable[[], Any] = lambda: None,
    ):
        self.params, self.method, self.limits, self.store = params, method, limits, store
        self.metrics = Metrics()
        self.clip_contexts: LRUCache[Hashable, Context]
        self.clip_contexts = LRUCache(limits.clip_cache_bytes, context_bytes)
        self.ready = threading.Event()
        self.failed, self._on_failure = False, on_failure
        self._changed = threading.Condition(threading.RLock())
        self._sessions: list[Session] = []
        self._first: deque[Job] = deque()  # precede windows and other jobs
        self._jobs: deque[Job] = deque()
        self._running: list[Job] = []  # in the current step
        self._answers = 0  # in both queues
        self._reserved = 0  # bytes of answers' caches
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._writer = ThreadPoolExecutor(1, "session-store")
        self._storing: dict[str, Future[None]] = {}  # by name of the session
        sessions, gauges = self._sessions, self.metrics
        gauges.sessions.set_function(lambda: len(sessions))
        gauges.answers.set_function(lambda: self._answers)
        gauges.windows_waiting.set_function(lambda: sum(len(each.queue) for each in sessions))
        gauges.session_bytes.set_function(
            lambda: sum(context_bytes(x) for each in sessions if (x := each.context) is not None)
        )
        gauges.answer_bytes.set_function(lambda: self._reserved)
        gauges.clip_cache_bytes.set_function(lambda: self.clip_contexts.currsize)

    def start(self, warmup: bool = True) -> None:
        """Start the thread.

        Args:
            warmup: compile the programs of live sessions first.
        """
        if not warmup:
            self.ready.set()
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Refuse new work, finish the answers, end the sessions, and stop the thread.

        Args:
            timeout: seconds to wait for that; None: without a limit.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._writer.shutdown()

    def submit(
        self, steps: Iterator[Any], on_event: Callable[[Any], Any], *, first: bool = False
    ) -> Job:
        """Queue an answer; see ``Job``.

        Args:
            first: its first step precedes windows and other jobs.

        Raises:
            RequestError: there are too many answers, or the server is closing.
        """
        job = Job(steps, on_event, is_answer=True)
        with self._changed:
            queued = (*self._first, *self._jobs)
            cancelled = sum(each.is_answer and each.cancelled for each in queued)
            if self._answers - cancelled >= self.limits.answers:
                raise self._overloaded(f"{self.limits.answers} answers are running or queued")
            self._check_open()
            self._answers += 1
            self._queue(job, first)
        return job

    async def events(self, steps: Iterator[Any], *, first: bool = False) -> AsyncGenerator[Any]:
        """Queue an answer and yield its events; closing the generator cancels the answer.

        Raises:
            RequestError: as ``submit``; that of a step; no step began for ``Limits.waiting``
                seconds.
        """
        (queue, put), seconds = event_queue(), self.limits.waiting
        job = self.submit(steps, put, first=first)
        try:
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        event = await queue.get()
                except TimeoutError:
                    since = job.queued
                    if since is None or time.monotonic() - since < seconds:
                        continue
                    message = f"no step of the answer has begun for {seconds:g} s; try again"
                    raise RequestError(message, 504) from None
                if event is None:
                    return
                if isinstance(event, RequestError):
                    raise event
                yield event
        finally:
            job.cancel()

    def open(
        self,
        on_event: Callable[[SessionEvent], Any],
        method: Method | None = None,
        **settings: Any,
    ) -> Session:
        """Create a session.

        Args:
            settings: arguments of ``init_stream``.

        Raises:
            RequestError: there are too many sessions, or the server is closing.
        """
        session = Session(on_event)

        def create() -> None:
            if not session.ended:
                context = self._init_stream(method or self.method, **settings)
                self.set_context(session, jax.block_until_ready(context))

        def on_end(error: RequestError | None) -> None:
            if error is not None:
                self.end(session, error)

        self._add_session(session)
        self._queue(Job(_step(create), on_end), first=True)
        return session

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function as a step that precedes windows and answers, and return its result.

        Raises:
            RequestError: as ``events``.
        """
        steps = _step(lambda: (function(),))  # a tuple, as None would be no event
        async with contextlib.aclosing(self.events(steps, first=True)) as events:
            (result,) = await anext(events)
        return result

    async def resume(self, name: str, on_event: Callable[[SessionEvent], Any]) -> Session:
        """Continue a session: that of another connection, which ends, or one in the store.

        Raises:
            RequestError: as ``events``, ``open``, and ``SessionStore.load``.
        """

        def take_over() -> Session | None:
            old = next((each for each in self._sessions if each.name == name), None)
            if old is not None:
                self.read_pending(old, old.arrived)
            if old is None or old.context is None:
                return None
            session = dataclasses.replace(
                old, on_event=on_event, queue=deque(), used=time.monotonic()
            )
            self.end(old, RequestError("the session was resumed by another connection", 404))
            self._sessions.append(session)
            return session

        if (session := await self.call(take_over)) is not None:
            return session
        if (storing := self._storing.get(name)) is not None:
            await asyncio.wrap_future(storing)
        assert self.store is not None
        session = await asyncio.to_thread(self.store.load, name, self.params, on_event)
        assert session.context is not None
        self._add_session(session)
        self.set_context(session, session.context)
        if await asyncio.to_thread(self.store.delete, name):
            return session
        self.end(session)
        return await self.resume(name, on_event)  # another client was faster

    async def change_method(self, session: Session, method: Method) -> int:
        """Change the method of a session; returns the number of the first window with it.

        Raises:
            RequestError: as ``events``.
        """
        arrived = session.arrived

        def change() -> int:
            self.read_pending(session, arrived)
            with invalid_input():
                context = change_method(self.params, self.context_of(session), method)
            self.set_context(session, context)
            return arrived

        return await self.call(change)

    def push(self, session: Session, window: Window, start: float = 0.0) -> None:
        """Queue the next window of a session; beyond ``Limits.windows`` the oldest is dropped.

        Args:
            start: its begin on the client's clock, for the events.
        """
        dropped = None
        with self._changed:
            if session.ended:
                return
            session.used = time.monotonic()
            session.queue.append(QueuedWindow(window, session.arrived, session.used, start))
            session.arrived += 1
            if len(session.queue) > self.limits.windows:
                dropped = session.queue.popleft()
                session.skipped += 1
                self.metrics.windows_skipped.inc()
            self._changed.notify_all()
        if dropped is not None:
            notify(session.on_event, WindowSkipped(dropped.number, session.skipped, dropped.start))

    def end(self, session: Session, reason: RequestError | None = None) -> None:
        """End a session and free its cache; calling it again has no effect.

        Args:
            reason: sent as the last event; None sends nothing.
        """
        with self._changed:
            if session.ended:
                return
            session.ended = True
            session.context = None
            session.queue.clear()
            self._sessions.remove(session)
        if reason is not None:
            notify(session.on_event, reason)

    def disconnect(self, session: Session) -> None:
        """End a session whose client has gone, and store it if there is a store."""
        if self.store is None or session.name is None:
            return self.end(session)
        job = Job(_step(lambda: self._store_and_end(session)), lambda _: None)
        self._queue(job, first=True)

    def context_of(self, session: Session) -> Context:
        """The context of a session; on the engine's thread.

        Raises:
            RequestError: the session has ended.
        """
        if session.context is None:
            raise RequestError("the session has ended", 404)
        return session.context

    def set_context(self, session: Session, context: Context) -> None:
        """Replace the context of a session unless it has ended; on the engine's thread."""
        with self._changed:
            if not session.ended:
                session.context, session.used = context, time.monotonic()

    def cached_clip(self, key: Hashable) -> Context | None:
        """The context that ``cache_clip`` was given for a key, if it is still cached."""
        with self._changed:
            return self.clip_contexts.get(key)

    def cache_clip(self, key: Hashable, context: Context) -> None:
        """Cache the context of a clip unless it is larger than the whole cache."""
        with self._changed:
            if context_bytes(context) <= self.clip_contexts.maxsize:
                self.clip_contexts[key] = context

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve memory for the cache of an answer; on the engine's thread.

        Args:
            size: in bytes.

        Raises:
            RequestError: answers would hold more than ``Limits.answer_bytes``.
        """
        limit = self.limits.answer_bytes
        if self._reserved + size > limit:
            raise self._overloaded(
                f"answers hold {self._reserved / MiB:.0f} of {limit / MiB:.0f} MiB, and this one "
                f"needs {size / MiB:.0f}"
            )
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def read_pending(self, session: Session, arrived: int) -> None:
        """Read the queued windows with smaller numbers; on the engine's thread."""
        while session.queue and session.queue[0].number < arrived:
            self._read_window(session)

    def _init_stream(self, method: Method, **settings: Any) -> Context:
        limits = self.limits
        sizes: dict[str, Any] = {"capacity": limits.capacity, "text_slots": limits.text_slots}
        with invalid_input():
            return init_stream(self.params, method, **sizes | settings)

    def _add_session(self, session: Session) -> None:
        with self._changed:
            if len(self._sessions) >= self.limits.sessions:
                raise self._overloaded(f"{self.limits.sessions} sessions are open")
            self._check_open()
            self._sessions.append(session)

    def _queue(self, job: Job, first: bool) -> None:
        job.queued = time.monotonic()
        with self._changed:
            (self._first if first else self._jobs).append(job)
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self.failed:
            raise RequestError("the device thread has failed: restart the server", 503)
        if self._closing:
            raise self._overloaded("the server is closing")

    def _overloaded(self, reason: str) -> RequestError:
        self.metrics.refused.inc()
        return RequestError(f"{reason}; try again later", 503)

    def _run(self) -> None:
        """Run steps until ``close``; a failure ends all jobs and sessions at once."""
        try:
            self._run_steps()
        except BaseException as error:
            refusal = as_request_error(error)
            with self._changed:
                self.failed = True
                jobs = [*self._running, *self._first, *self._jobs]
                self._first.clear()
                self._jobs.clear()
                self._answers = 0
            for job in jobs:
                job.end(refusal)
            for session in tuple(self._sessions):
                self.end(session, refusal)
            self._on_failure()

    def _run_steps(self) -> None:
        if not self.ready.is_set():
            self._warmup()
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, 1.0)
                if self._closing and not self._answers:
                    break
                session = None if self._first else self._next_session()
            if session is not None:
                self._read_window(session)
            self._run_step()
            self._end_idle()
        for session in tuple(self._sessions):
            self._store_and_end(session, "the server is closing")

    def _has_work(self) -> bool:
        return bool(self._first or self._jobs or self._next_session() or self._closing)

    def _next_session(self) -> Session | None:
        """The session whose oldest queued window arrived first."""
        sessions = (s for s in self._sessions if s.queue and s.context is not None)
        return min(sessions, key=lambda s: s.queue[0].since, default=None)

    def _run_step(self) -> None:
        """Run the next step of one job, or decode for several."""
        batch = self._next_jobs()
        self._running = [job for job, _ in batch]
        if not batch:
            return
        began = time.perf_counter()
        pending = [generation for _, generation in batch if generation is not None]
        if pending:
            self.metrics.decoded_answers.inc(len(pending))
            self.metrics.decode_steps.inc()
            try:
                decoded = batches.step_batch(self.params, pending)
            except Exception as error:  # the result of each of them
                decoded = [error] * len(pending)
            more = [job.resume(result) for (job, _), result in zip(batch, decoded, strict=True)]
        else:
            more = [batch[0][0].step()]
        self.metrics.step.observe(time.perf_counter() - began)
        with self._changed:
            for (job, _), unfinished in zip(batch, more, strict=True):
                if unfinished:
                    job.queued = time.monotonic()
                    self._jobs.append(job)
                else:
                    self._answers -= job.is_answer

    def _next_jobs(self) -> list[tuple[Job, GenerationState | None]]:
        """Dequeue the next job; if it decodes, with those that decode in the same batch."""
        with self._changed:
            queue = self._first or self._jobs
            if not queue:
                return []
            jobs = [(job, job.pending) for job in queue]
            kinds = [
                job if generation is None else batches.batch_key(generation)
                for job, generation in jobs
            ]
            batch = [jobs[number] for number in batches.next_batch(kinds)]
            for job, _ in batch:
                queue.remove(job)
                job.queued = None
            return batch

    def _read_window(self, session: Session) -> None:
        """Add the oldest queued window of a session to its context."""
        with self._changed:
            context = session.context
            if context is None or not session.queue:
                return
            queued = session.queue.popleft()
        began, waited = time.perf_counter(), time.monotonic() - queued.since
        try:
            before = np.asarray(context.seen), np.asarray(context.kept)
            context = jax.block_until_ready(feed(self.params, context, queued.window))
            took = time.perf_counter() - began
            event = window_read(session, before, context, queued, waited, took)
        except Exception as error:
            return self.end(session, as_request_error(error))
        self.set_context(session, context)
        self.metrics.windows.inc()
        self.metrics.window_wait.observe(waited)
        self.metrics.media_tokens.inc(event.audio + event.video)
        self.metrics.media_tokens_kept.inc(event.audio_kept + event.video_kept)
        if not session.ended:
            notify(session.on_event, event)

    def _end_idle(self) -> None:
        idle = self.limits.idle
        for session in tuple(self._sessions):
            if not session.answers and time.monotonic() - session.used > idle:
                self._store_and_end(session, f"the session was idle for {idle:g} s")

    def _store_and_end(self, session: Session, reason: str | None = None) -> None:
        if self.store is not None and session.name is not None:
            name = session.name
            self.read_pending(session, session.arrived)
            if session.context is not None:
                storing = self._writer.submit(self.store.put, dataclasses.replace(session))
                self._storing[name] = storing
                storing.add_done_callback(lambda _: self._storing.pop(name))
        self.end(session, None if reason is None else RequestError(reason, 404))

    def _warmup(self) -> None:
        """Compile a session of the default method, and its answers in batches of every size."""
        limits = self.limits
        try:
            context = self._init_stream(self.method)
            context = feed(self.params, context, Window.empty(context.prefill_config.spec))
            for count in sorted(batches.BATCH_SIZES):
                if count <= min(limits.answers, limits.answer_bytes // context_bytes(context)):
                    answers = [
                        begin(self.params, context, "?", SamplingParams(1)) for _ in range(count)
                    ]
                    batches.step_batch(self.params, answers)
            jax.block_until_ready(evict(context).cache)
        except RequestError as error:  # of a setting, or of a method that needs whole clips
            _LOG.warning("live sessions cannot begin: %s", error)
        self.ready.set()
