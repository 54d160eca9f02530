"""Live sessions: events of their windows, and sessions that are stored and resumed."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter

import jax
import numpy as np
import pytest
from starlette.testclient import TestClient

import omnizip_jax.serve.sessions as sessions_module
from omnizip_jax import OmniZipConfig, ask, feed, init_stream
from omnizip_jax.evaluation.decoder_cost import prefill_operations
from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.server import Server
from omnizip_jax.serve.sessions import QueuedWindow, Session, SessionStore, window_read
from tests.conftest import make_windows
from tests.serve.conftest import LIMITS, WAIT, gauge, ignore
from tests.serve.test_live import (
    PATH,
    QUESTION,
    begin_library,
    frame_message,
    read_windows,
    stream,
    until,
)

__all__ = ["stream"]


@pytest.mark.slow  # more programs
@pytest.mark.parametrize("memory", ["recent", "fading"])
def test_tokens_in_the_cache_by_window(tiny, memory):
    """Dropped windows are counted in the numbers; evicted ones are not listed."""
    windows, session = make_windows([2] * 12, [200] * 12), Session(ignore)
    state = init_stream(tiny, OmniZipConfig(), capacity=768, text_slots=192, memory=memory)
    kept, evicted = {}, False
    for index in range(12):
        number = index if index < 3 else index + 2  # two were dropped
        window = jax.tree.map(lambda x, i=index: x[i], windows)
        before = np.asarray(state.seen), np.asarray(state.kept)
        state = feed(tiny, state, window)
        event = window_read(session, before, state, QueuedWindow(window, number, 0.0), 0.0, 0.0)
        remembered = dict(event.remembered)
        kept[number] = event.audio_kept + event.video_kept
        assert remembered[number] == kept[number] > 0 and list(remembered) == sorted(remembered)
        assert all(0 < tokens <= kept[each] for each, tokens in remembered.items())
        if evicted or sum(remembered.values()) < sum(kept.values()):
            evicted = True
        else:
            assert remembered == kept
        # Counted again from the slots.
        slots = jax.device_get(state.state.slots)
        units = [
            int(unit)
            for kind, unit in zip(slots.kind, slots.unit, strict=True)
            if kind in (3, 4)  # audio, video
        ][: sum(remembered.values())]
        assert sorted(Counter(units).items()) == list(
            zip(sorted(session.units), remembered.values(), strict=True)
        )
        assert len(session.units) == len(remembered)
    assert evicted and (len(remembered) < 12 if memory == "recent" else remembered[0] < kept[0])
    text = int(state.state.origin)
    config = tiny.config.text
    layers = config.layers
    all_tokens = prefill_operations(config, [text + int(sum(state.seen))] * layers)
    assert event.work == pytest.approx(
        prefill_operations(config, [text + int(sum(state.kept))] * layers) / all_tokens
    )


@pytest.fixture
def store(tmp_path):
    return SessionStore(tmp_path / "sessions", limit=2)


@pytest.fixture
def start_server(tiny, store, decoders):
    """Starts servers that store their sessions in one folder."""
    engines = []

    def start():
        engine = Engine(tiny, OmniZipConfig(), LIMITS, store)
        engine.start(warmup=False)
        engines.append(engine)
        return engine, Server(engine, "tiny", ServerConfig(limits=LIMITS), *decoders)

    yield start
    for engine in engines:
        engine.close(WAIT)


def configure(socket, **extra):
    socket.send_json({"type": "session.config", "max_tokens": 8, "omnizip": extra})
    return until(socket, "session.created")[-1]


def send(socket, stream, first, last):
    frames, chunks = stream
    for i in range(first, last):
        socket.send_json(frame_message(frames[i], i - first))
        data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
        socket.send_json({"type": "audio.chunk", "data": data.decode()})


def answer(socket):
    socket.send_json({"type": "video.query", "text": QUESTION})
    return until(socket, "response.text.done")


def wait_for(store, name):
    ends = time.monotonic() + WAIT
    while not (store.folder / name).exists():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_client_resumes_its_session(start_server, store, tiny, stream):
    """After a lost connection, and on another server; the answers are those of one session."""
    engine, server = start_server()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            created = configure(socket)
            send(socket, stream, 0, 5)
            until(socket, "window.read")
        name = created["session_id"]
        assert created["windows"] == 0 and len(name) == 32
        wait_for(store, name)
        with client.websocket_connect(PATH) as socket:
            assert configure(socket, resume=name) == created | {"windows": 1}
            before = answer(socket)[-1]["text"]
            with client.websocket_connect(PATH) as second:  # the first one is still open
                assert configure(second, resume=name) == created | {"windows": 1}
                ended = until(socket, "error")[-1]
                assert ended["code"] == 404 and "resumed by another" in ended["message"]
                assert answer(second)[-1]["text"] == before
    engine.close(WAIT)  # as SIGTERM does
    wait_for(store, name)
    _, server = start_server()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            configure(socket, resume=name)
            assert answer(socket)[-1]["text"] == before
            send(socket, stream, 4, 9)
            read = until(socket, "window.read")[-1]
            assert read["number"] == 1 and [number for number, _ in read["remembered"]] == [0, 1]
            socket.send_json({"type": "video.done"})
            until(socket, "session.done")
        assert not (store.folder / name).exists()  # deleted after video.done
    state = feed(tiny, begin_library(tiny), read_windows(tiny, stream, 5)[0])
    assert before == ask(tiny, state, QUESTION, max_new_tokens=8)[0].text


def test_sessions_that_cannot_be_resumed(start_server, store, tiny, stream, tmp_path):
    _, server = start_server()
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


def test_the_store_is_bounded(start_server, store, tiny):
    engine, _ = start_server()
    names = []
    for _ in range(3):
        session = engine.open(ignore)
        session.name = store.new_name()
        names.append(session.name)
        engine.disconnect(session)
        wait_for(store, session.name)
    engine.close(WAIT)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(names[1:])
    assert gauge(engine, "sessions") == 0
    damaged = store.folder / names[1] / "session.json"
    damaged.write_text("{")
    with pytest.raises(RequestError, match="begin a new one"):
        store.load(names[1], tiny, ignore)
    assert not (store.folder / names[1]).exists()


def test_a_fault_while_restoring_keeps_the_session(start_server, store, tiny, stream, monkeypatch):
    engine, server = start_server()
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            name = configure(socket)["session_id"]
            send(socket, stream, 0, 5)
            until(socket, "window.read")
        wait_for(store, name)
        for fault in (OSError(24, "Too many open files"), ValueError("other weights"), MemoryError):
            with monkeypatch.context() as patch, client.websocket_connect(PATH) as socket:
                patch.setattr(sessions_module, "restore", raising(fault))
                socket.send_json({"type": "session.config", "omnizip": {"resume": name}})
                error = until(socket, "error")[-1]
                assert error["code"] == 503 and "is kept: try again" in error["message"]
        full = [engine.open(ignore) for _ in range(LIMITS.sessions)]
        with client.websocket_connect(PATH) as socket:
            socket.send_json({"type": "session.config", "omnizip": {"resume": name}})
            assert until(socket, "error")[-1]["code"] == 503
        for session in full:
            engine.end(session)
        with client.websocket_connect(PATH) as socket:
            assert configure(socket, resume=name)["windows"] == 1


def raising(error):
    def function(*_):
        raise error

    return function


def test_a_client_that_comes_back_while_its_session_is_stored(
    start_server, store, tiny, stream, monkeypatch
):
    """During a slow write, and before the server has noticed that the old connection is closed."""
    _, server = start_server()
    save = sessions_module.save
    writing = threading.Event()

    def slow(*arguments):
        writing.set()
        time.sleep(0.3)
        return save(*arguments)

    monkeypatch.setattr(sessions_module, "save", slow)
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        with client.websocket_connect(PATH) as socket:
            name = configure(socket)["session_id"]
            send(socket, stream, 0, 5)
            until(socket, "window.read")
        assert writing.wait(WAIT)
        for _ in range(3):
            with client.websocket_connect(PATH) as socket:
                assert configure(socket, resume=name)["windows"] == 1


def test_an_interrupted_write_does_not_prevent_the_next(start_server, store):
    engine, _ = start_server()
    session = engine.open(ignore)
    session.name = store.new_name()
    (store.folder / f"{session.name}.partial").mkdir(parents=True)  # of a server that was killed
    engine.disconnect(session)
    wait_for(store, session.name)
