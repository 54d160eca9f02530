"""An engine, and queues of events for the tests of the server."""

from __future__ import annotations

import queue

import jax
import numpy as np
import pytest

from omnizip_jax import OmniZipConfig
from omnizip_jax.serve.config import Limits
from omnizip_jax.serve.engine import Engine
from tests.conftest import make_windows

LIMITS = Limits(sessions=3, answers=4, windows=2, capacity=768, text_slots=192, tokens=64)
WAIT = 120.0  # s, for compilation on busy machines


@pytest.fixture(scope="session")
def windows():
    """Four windows; one has little audio and one grid."""
    clip = make_windows([2, 2, 1, 2], [200, 200, 77, 200])
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], clip) for i in range(4)]


class Events(queue.SimpleQueue):
    """Collects the events of a session or of a job, in order."""

    def next(self):
        return self.get(timeout=WAIT)

    def all(self):
        """Up to the end of a job: its events, and the error or None."""
        events = []
        while (event := self.next()) is not None and not isinstance(event, Exception):
            events.append(event)
        return events, event


class InProcessDecoders:
    """Decodes without worker processes."""

    ready = True

    async def call(self, task, *arguments):
        return task(*arguments)


def gauge(engine, name):
    """The value of one of an engine's gauges."""
    return engine.metrics.registry.get_sample_value(f"omnizip_{name}")


def ignore(_):
    """A callback that does nothing."""


@pytest.fixture
def engine(tiny):
    """A running engine that has compiled nothing ahead."""
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warmup=False)
    yield engine
    engine.close(WAIT)


@pytest.fixture(scope="session")
def decoders():
    """For clips, and for live frames."""
    return InProcessDecoders(), InProcessDecoders()
