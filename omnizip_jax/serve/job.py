"""Work in steps, which may leave the making of tokens to somebody who makes them for several."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from omnizip_jax.inference.generation import GenerationState
from omnizip_jax.serve.failure import explained

_LOG = logging.getLogger("omnizip.serve")


@dataclasses.dataclass(frozen=True)
class Going:
    """What an answer's steps give where its next tokens are wanted; they are sent the reply to it.

    Attributes:
        generation: it is used up.
        news: to tell meanwhile, or None.
    """

    generation: GenerationState
    news: Any


class Job:
    """Work in steps, and whom to tell.

    Args:
        steps: each ``next`` is one step on the device; what it gives, if not None, is told. A
            generator may also give ``Going``: then its next step is made by the engine, along with
            those of others, and it is sent the reply.
        tell: called on the engine's thread with what the steps give; at last with None, or with
            the ``Failure`` that ended them. Not after ``cancel``.
        answer: it is one of those whose number is bounded.
    """

    def __init__(self, steps: Iterator[Any], tell: Callable[[Any], Any], answer: bool = False):
        self._steps: Any = steps
        self._tell, self.answer = tell, answer
        self._reply: GenerationState | None = None
        self._cancelled = threading.Event()
        self.finished = threading.Event()

    def cancel(self) -> None:
        """No step begins after this, from any thread."""
        self._cancelled.set()

    @property
    def wanting(self) -> GenerationState | None:
        """The reply whose next tokens are wanted, if they still are."""
        return None if self._cancelled.is_set() else self._reply

    def step(self) -> bool:
        """One step by itself; returns whether there is more to do."""
        return self._go_on(lambda: next(self._steps))

    def take(self, generation: GenerationState | Exception) -> bool:
        """Go on with the tokens that came, or with what came instead."""
        if isinstance(generation, Exception):
            return self._go_on(lambda: self._steps.throw(generation))
        return self._go_on(lambda: self._steps.send(generation))

    def _go_on(self, step: Callable[[], Any]) -> bool:
        told: Any = None
        self._reply = None
        try:
            if not self._cancelled.is_set():
                told = step()
                if isinstance(told, Going):
                    self._reply, told = told.generation, told.news
                if told is not None and not self._cancelled.is_set():
                    say(self._tell, told)
                return True
        except StopIteration:
            told = None
        except Exception as error:
            told = explained(error)
            if told.status == 500:
                _LOG.exception("a step has failed")
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
        self._steps = iter(())  # lets go of its memory
        self.finished.set()
        if not self._cancelled.is_set():
            say(self._tell, told)
        return False


def say(tell: Callable[[Any], Any], news: Any) -> None:
    """Tell somebody; the device goes on if they fail to listen."""
    try:
        tell(news)
    except Exception:
        _LOG.exception("nobody listens")
