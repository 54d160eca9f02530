"""A bounded queue between threads that either end can close, and threads that fill it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Closed(Exception):
    """The other end has left: nothing more is taken, or nothing more comes."""


class Channel(Generic[Item]):
    """A queue that its producers ``finish`` and its consumer may ``close`` at any time.

    Args:
        size: items held at most; None for any number.
        skip: when full, drop the oldest item and count it, instead of waiting.
        producers: how often ``finish`` is called before the end.

    Attributes:
        skipped: items dropped.
    """

    def __init__(self, size: int | None = None, *, skip: bool = False, producers: int = 1):
        self.skipped = 0
        self._size, self._skip, self._producers = size, skip, producers
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._asked: float | None = None
        self._ever_asked = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Add an item; waits while the queue is full. Raises ``Closed`` at either end's end."""
        with self._changed:
            if self._producers <= 0:
                raise Closed
            if self._skip and self._full():
                self._items.popleft()
                self.skipped += 1
            self._changed.wait_for(lambda: self._closed or not self._full())
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """A producer's end. The error, if any, reaches the consumer after the items."""
        with self._changed:
            self._producers -= 1
            self._error = self._error or error
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Item:
        """The next item.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
            Closed: none will come.
            Exception: what ``finish`` was given.
        """
        with self._changed:
            self._asked = time.monotonic()
            if not self._ever_asked:
                self._ever_asked = True
                self._changed.notify_all()
            try:
                ready = self._changed.wait_for(
                    lambda: self._items or self._error or self._closed or self._producers <= 0,
                    timeout,
                )
            finally:
                self._asked = None
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error and not self._closed:
                raise self._error
            raise Closed if ready else TimeoutError

    def close(self) -> None:
        """The consumer's end: producers that wait are sent away."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def skips(self) -> bool:
        """Whether items are dropped when it is full."""
        return self._skip

    def wait_closed(self, seconds: float) -> None:
        """Sleep, unless the consumer leaves: then raise ``Closed``."""
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, seconds):
                raise Closed

    def wait_asked(self) -> None:
        """Sleep until the consumer asks for its first item; raises ``Closed`` if it leaves."""
        with self._changed:
            self._changed.wait_for(lambda: self._ever_asked or self._closed)
            if self._closed:
                raise Closed

    def wanted(self) -> float:
        """Seconds that the consumer has been waiting for an item."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def _full(self) -> bool:
        return self._size is not None and len(self._items) >= self._size


def fill(channel: Channel[Item], items: Generator[Item], name: str) -> threading.Thread:
    """Move items into a channel in a thread. Errors go the same way, in words that name the source.

    Returns:
        The thread, not started.
    """

    def work() -> None:
        error = None
        try:
            with contextlib.closing(items):
                for item in items:
                    channel.put(item)
        except Closed:
            pass
        except ValueError as problem:
            error = problem
            if not str(problem).startswith(name):
                error = ValueError(f"{name}: {problem}")
                error.__cause__ = problem
        except Exception as problem:
            error = ValueError(f"{name}: {type(problem).__name__}: {problem}")
            error.__cause__ = problem
        channel.finish(error)

    return threading.Thread(target=work, name=f"windows of {name}", daemon=True)


def read_ahead(items: Generator[Item], name: str, size: int) -> Generator[Item]:
    """The same items, read in a thread.

    Unlike a call into FFmpeg, waiting for them ends at Ctrl-C. A thread caught in a read then ends
    when that returns or fails.
    """
    channel: Channel[Item] = Channel(size)
    fill(channel, items, name).start()
    with contextlib.closing(channel):
        while True:
            try:
                item = channel.get()
            except Closed:
                return
            yield item


def apart(task: Callable[[], Item], name: str) -> Item:
    """Run a task in a thread, for the same reason."""

    def once() -> Generator[Item]:
        yield task()

    with contextlib.closing(read_ahead(once(), name, 1)) as items:
        return next(items)
