"""Jobs of the engine, and their events."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from omnizip_jax.inference.generation import GenerationState
from omnizip_jax.serve.errors import RequestError, as_request_error

_LOG = logging.getLogger("omnizip.serve")


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """Yielded by the steps of an answer to request its next tokens.

    Attributes:
        generation: consumed; the steps are sent its successor.
        event: an event to emit now, or None.
    """

    generation: GenerationState
    event: Any


class Job:
    """An iterator whose items are steps on the device, and a callback for its events.

    Args:
        steps: every ``next`` is one step; an item that is not None is emitted as an event. A
            generator may yield a ``DecodeRequest``: the engine then decodes, in a batch with other
            answers, and sends the new ``GenerationState``.
        on_event: called on the engine's thread with every event; at the end with None, or with the
            ``RequestError`` that ended the job. Not called after ``cancel``.
        is_answer: it counts against ``Limits.answers``.

    Attributes:
        queued: time since which it waits for its next step; None while one runs.
    """

    def __init__(
        self, steps: Iterator[Any], on_event: Callable[[Any], Any], is_answer: bool = False
    ):
        self._steps: Any = steps
        self._on_event, self.is_answer = on_event, is_answer
        self.queued: float | None = None
        self._generation: GenerationState | None = None
        self.cancelled = False
        self.finished = threading.Event()

    def cancel(self) -> None:
        """Run no further step; from any thread."""
        self.cancelled = True

    @property
    def pending(self) -> GenerationState | None:
        """The generation that waits for its next tokens, if any."""
        return None if self.cancelled else self._generation

    def step(self) -> bool:
        """Run one step; returns whether there are more."""
        return self._advance(lambda: next(self._steps))

    def resume(self, generation: GenerationState | Exception) -> bool:
        """Continue with the decoded tokens, or with the error of decoding."""
        if isinstance(generation, Exception):
            return self._advance(lambda: self._steps.throw(generation))
        return self._advance(lambda: self._steps.send(generation))

    def end(self, error: RequestError | None) -> None:
        """End the job unless it has ended; its steps are not run any more."""
        if not self.finished.is_set():
            self.finished.set()
            self._notify(error)

    def _notify(self, event: Any) -> None:
        if not self.cancelled:
            notify(self._on_event, event)

    def _advance(self, step: Callable[[], Any]) -> bool:
        failure: RequestError | None = None
        self._generation = None
        try:
            if not self.cancelled:
                event = step()
                if isinstance(event, DecodeRequest):
                    self._generation, event = event.generation, event.event
                if event is not None:
                    self._notify(event)
                return True
        except StopIteration:
            pass
        except Exception as error:
            failure = as_request_error(error)
        if hasattr(self._steps, "close"):
            self._steps.close()
        self._steps = iter(())  # frees what the generator holds
        self.end(failure)
        return False


def notify(on_event: Callable[[Any], Any], event: Any) -> None:
    """Call a callback; an error of it is logged and does not stop the engine."""
    try:
        on_event(event)
    except Exception:
        _LOG.exception("an event could not be delivered")


def event_queue() -> tuple[asyncio.Queue[Any], Callable[[Any], Any]]:
    """A queue of the running loop, and the function that adds an event to it from any thread."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    return queue, functools.partial(
        asyncio.get_running_loop().call_soon_threadsafe, queue.put_nowait
    )
