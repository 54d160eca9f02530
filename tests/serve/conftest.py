"""A server's parts on the tiny model."""

from __future__ import annotations

import dataclasses
import queue

import pytest

from omnizip_jax import OmniZipConfig, load
from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.limits import Limits

LIMITS = Limits(sessions=3, answers=4, windows=2, capacity=1024, text_slots=192, tokens=64)
WAIT = 120.0  # s, for compilers on busy machines


@pytest.fixture(scope="session")
def folder(released_folder, tmp_path_factory):
    """A converted tiny checkpoint."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    convert(released_folder, folder, "float32")
    return folder


@pytest.fixture(scope="session")
def tiny(folder):
    """The same, loaded, with small windows."""
    params = load(folder)
    return dataclasses.replace(params, config=dataclasses.replace(params.config, grid_slots=16))


class Heard(queue.SimpleQueue):
    """What somebody is told, in order."""

    def next(self):
        return self.get(timeout=WAIT)

    def all(self):
        """Up to the end of a job: what came, and the failure or None."""
        news = []
        while (one := self.next()) is not None and not isinstance(one, Exception):
            news.append(one)
        return news, one


@pytest.fixture
def heard():
    return Heard


@pytest.fixture
def engine(tiny):
    """Works, but has compiled nothing ahead."""
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warm=False)
    yield engine
    engine.close(WAIT)
