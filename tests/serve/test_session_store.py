"""Sessions whose clients are gone: they wait on the disk, and go on as if nothing had happened."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from omnizip_jax import OmniZipConfig, ask, feed
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.http import Server
from omnizip_jax.serve.session_store import Shelf
from omnizip_jax.serve.sources import Sources
from omnizip_jax.serve.worker import Workers
from tests.serve.conftest import LIMITS, WAIT
from tests.serve.test_live import (
    PATH,
    QUESTION,
    begin_lonely,
    picture,
    read_windows,
    stream,
    until,
)

pytestmark = pytest.mark.slow  # many programs, sockets and processes
__all__ = ["stream"]


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "sessions", most=2)


@pytest.fixture
def serving(tiny, shelf):
    """Begins a server, as often as wanted; all of them keep sessions in one folder."""
    workers = Workers(1, WAIT)
    engines = []

    def begin(limits=LIMITS):
        engine = Engine(tiny, OmniZipConfig(), limits, shelf=shelf)
        engine.start(warm=False)
        engines.append(engine)
        return engine, Server(engine, "tiny", Sources(LIMITS), workers)

    yield begin
    for engine in engines:
        engine.close(WAIT)
    workers.close()


def begin(socket, **extra):
    socket.send_json({"type": "session.config", "max_tokens": 8, "omnizip": extra})
    return until(socket, "session.created")[-1]


def send(socket, stream, first, last):
    frames, chunks = stream
    for i in range(first, last):
        socket.send_json(picture(frames[i], i - first))
        data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
        socket.send_json({"type": "audio.chunk", "data": data.decode()})


def answer(socket):
    socket.send_json({"type": "video.query", "text": QUESTION})
    return until(socket, "response.text.done")


def wait_for(shelf, name):
    ends = time.monotonic() + WAIT
    while not (shelf.folder / name).exists():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_client_comes_back(serving, shelf, tiny, stream):
    """After it was cut off, and to another server; the answer is that of one who stayed."""
    engine, server = serving()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            created = begin(socket)
            send(socket, stream, 0, 5)
            until(socket, "window.read")
        name = created["session_id"]
        assert created["windows"] == 0 and len(name) == 32
        wait_for(shelf, name)
        with client.websocket_connect(PATH) as socket:
            assert begin(socket, resume=name) == created | {"windows": 1}
            with client.websocket_connect(PATH) as thief:  # it is in use
                thief.send_json({"type": "session.config", "omnizip": {"resume": name}})
                assert until(thief, "error")[-1]["code"] == 404
            before = answer(socket)[-1]["text"]
    engine.close(WAIT)  # as SIGTERM does
    wait_for(shelf, name)
    _, server = serving()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            begin(socket, resume=name)
            assert answer(socket)[-1]["text"] == before
            send(socket, stream, 4, 9)
            read = until(socket, "window.read")[-1]
            assert read["number"] == 1 and [number for number, _ in read["remembered"]] == [0, 1]
            socket.send_json({"type": "video.done"})
            until(socket, "session.done")
        assert not (shelf.folder / name).exists()  # nobody wants it any more
    state = feed(tiny, begin_lonely(tiny), read_windows(tiny, stream, 5)[0])
    assert before == ask(tiny, state, QUESTION, max_new_tokens=8)[0].text


def test_what_cannot_be_resumed(serving, shelf, tiny, stream, tmp_path):
    _, server = serving()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        for name in ("../../etc", "x" * 32, 5, ""):
            with client.websocket_connect(PATH) as socket:
                socket.send_json({"type": "session.config", "omnizip": {"resume": name}})
                error = until(socket, "error")[-1]
                assert error["code"] == 404 and "begin a new one" in error["message"]
        with client.websocket_connect(PATH) as socket:
            settings = {"resume": "x" * 32, "memory": "fading", "method": "all"}
            socket.send_json({"type": "session.config", "omnizip": settings})
            assert "has its memory, method already" in until(socket, "error")[-1]["message"]


def test_the_shelf_is_bounded(serving, shelf, tiny):
    engine, _ = serving()
    names = []
    for _ in range(3):
        session = engine.open(lambda _: None)
        session.name = shelf.name()
        names.append(session.name)
        engine.leave(session)
        wait_for(shelf, session.name)
    engine.close(WAIT)
    assert sorted(path.name for path in shelf.folder.iterdir()) == sorted(names[1:])
    assert engine.metrics.sessions._value.get() == 0
    damaged = shelf.folder / names[1] / "session.json"
    damaged.write_text("{")
    with pytest.raises(Failure, match="begin a new one"):
        shelf.take(names[1], tiny)
    assert not (shelf.folder / names[1]).exists()
