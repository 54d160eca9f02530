"""A bounded queue between threads that either end can close, and threads that fill it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueClosed(Exception):
    """The other end is closed: items are no longer taken, or no more will arrive."""


class BoundedQueue(Generic[Item]):
    """A queue that producers ``finish`` and the consumer may ``close`` at any time.

    Args:
        size: capacity in items; None is unbounded.
        drop_oldest: when full, drop the oldest item and count it, instead of blocking.
        producers: number of calls of ``finish`` that end the queue.

    Attributes:
        drop_oldest: see above.
        dropped: number of items dropped.
        closed: whether the consumer has closed the queue.
    """

    def __init__(self, size: int | None = None, *, drop_oldest: bool = False, producers: int = 1):
        self.drop_oldest, self.dropped = drop_oldest, 0
        self._size, self._producers = size, producers
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self.closed = False
        self._get_since: float | None = None  # when the consumer began to wait
        self._get_called = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Add an item; blocks while the queue is full.

        Raises:
            QueueClosed: the queue is finished or closed.
        """
        with self._changed:
            if self._producers <= 0:
                raise QueueClosed
            if self.drop_oldest and self._full():
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self.closed or not self._full())
            if self.closed:
                raise QueueClosed
            self._items.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """End one producer. The consumer gets the error, if any, after the items."""
        with self._changed:
            self._producers -= 1
            self._error = self._error or error
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Item:
        """Return the next item.

        Raises:
            TimeoutError: none arrived within ``timeout`` seconds.
            QueueClosed: none will arrive.
            Exception: the error passed to ``finish``.
        """
        with self._changed:
            self._get_since, self._get_called = time.monotonic(), True
            self._changed.notify_all()
            try:
                ready = self._changed.wait_for(
                    lambda: self._items or self._error or self.closed or self._producers <= 0,
                    timeout,
                )
            finally:
                self._get_since = None
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error and not self.closed:
                raise self._error
            raise QueueClosed if ready else TimeoutError

    def close(self) -> None:
        """End the consumer: blocked producers raise ``QueueClosed``."""
        with self._changed:
            self.closed = True
            self._items.clear()
            self._changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Sleep; raises ``QueueClosed`` as soon as the consumer closes the queue."""
        with self._changed:
            if self._changed.wait_for(lambda: self.closed, seconds):
                raise QueueClosed

    def wait_for_first_get(self) -> None:
        """Block until the consumer calls ``get``; raises ``QueueClosed`` if it closes the queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._get_called or self.closed)
            if self.closed:
                raise QueueClosed

    def consumer_waited(self) -> float:
        """Seconds that the consumer has been waiting for an item."""
        since = self._get_since
        return 0.0 if since is None else time.monotonic() - since

    def _full(self) -> bool:
        return self._size is not None and len(self._items) >= self._size


def producer_thread(
    queue: BoundedQueue[Item], items: Generator[Item], name: str
) -> threading.Thread:
    """A thread, not started, that moves items into a queue.

    An error ends the queue as a ``ValueError`` that names the source, with its cause.
    """

    def work() -> None:
        error = None
        try:
            with contextlib.closing(items):
                for item in items:
                    queue.put(item)
        except QueueClosed:
            pass
        except Exception as cause:
            error, text = cause, str(cause)
            if not isinstance(cause, ValueError):
                text = f"{type(cause).__name__}: {cause}"
            if not (isinstance(cause, ValueError) and text.startswith(name)):
                error = ValueError(f"{name}: {text}")
                error.__cause__ = cause
        queue.finish(error)

    return threading.Thread(target=work, name=f"windows of {name}", daemon=True)


def prefetch(items: Generator[Item], name: str, size: int) -> Generator[Item]:
    """Yield the same items, read ahead by a thread.

    Unlike a call into FFmpeg, waiting for them ends at Ctrl-C. A thread blocked in a read then
    ends when that read returns or fails.
    """
    queue: BoundedQueue[Item] = BoundedQueue(size)
    producer_thread(queue, items, name).start()
    with contextlib.closing(queue), contextlib.suppress(QueueClosed):
        while True:
            yield queue.get()


def run_in_thread(task: Callable[[], Item], name: str) -> Item:
    """Run a task in a thread, so that Ctrl-C ends the wait for it."""
    only = (task() for _ in range(1))
    with contextlib.closing(prefetch(only, name, 1)) as items:
        return next(items)
