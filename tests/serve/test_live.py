"""Live video as the clients of vLLM-Omni speak it: all of it counts, nothing brings it down."""

from __future__ import annotations

import base64
import io
import json
import random
import threading

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from omnizip_jax import OmniZipConfig, PushSource, ask, feed, fork, init_stream, windows
from omnizip_jax.inference.streaming import change_method
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.http import Server
from omnizip_jax.serve.live_assembler import Incoming
from omnizip_jax.serve.requests import remembered
from omnizip_jax.serve.sources import Sources
from omnizip_jax.serve.worker import Workers
from tests.serve.conftest import LIMITS, WAIT

pytestmark = pytest.mark.slow  # many programs, sockets and processes

PATH = "ws://127.0.0.1/v1/video/chat/stream"
QUESTION = "What happens?"
RATE = 16_000


@pytest.fixture(scope="module")
def server(tiny):
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warm=False)
    workers = Workers(1, WAIT)
    yield Server(engine, "tiny", Sources(LIMITS), workers)
    engine.close(WAIT)
    workers.close()


@pytest.fixture
def talk(server):
    """Opens sockets to one server."""
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        yield lambda: client.websocket_connect(PATH)


@pytest.fixture(scope="module")
def stream():
    """Five seconds: pictures every half second, as png, and a tone as chunks of a quarter."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(10)]
    time = np.arange(5 * RATE) / RATE
    pcm = (8000 * np.sin(2 * np.pi * 440 * time)).astype("<i2")
    return frames, np.split(pcm, 20)


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def picture(frame, number, **more):
    return {"type": "video.frame", "data": png(frame), "pts_ms": 500 * number, **more}


def send_all(socket, stream, pictures=10):
    frames, chunks = stream
    for i in range(pictures):
        socket.send_json(picture(frames[i], i, frame_id=f"frame-{i}"))
        for chunk in chunks[2 * i : 2 * i + 2]:
            data = base64.b64encode(chunk.tobytes()).decode()
            socket.send_json({"type": "audio.chunk", "data": data})


def until(socket, kind):
    """Messages up to the first of a kind."""
    messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(socket.receive_json())
        assert messages[-1]["type"] != "error" or kind == "error", messages[-1]
    return messages


def of(messages, kind):
    return [message for message in messages if message["type"] == kind]


def read_windows(tiny, stream, pictures):
    """What the library makes of the same stream."""
    frames, chunks = stream
    source = PushSource(RATE)
    source.push_frames(np.stack(frames[:pictures]), np.arange(pictures) / 2)
    source.push_audio(np.concatenate(chunks[: 2 * pictures]) / np.float32(32768))
    source.close()
    return list(windows(source, tiny.config.spec))


def begin_lonely(tiny):
    settings = {"capacity": LIMITS.capacity, "text_slots": LIMITS.text_slots}
    return init_stream(tiny, OmniZipConfig(), **settings)


def lonely(tiny, stream, pictures):
    """The library's own answer to the same stream."""
    state = begin_lonely(tiny)
    for window in read_windows(tiny, stream, pictures):
        state = feed(tiny, state, window)
    return ask(tiny, state, QUESTION, max_new_tokens=8)[0]


def test_a_client_is_answered_from_the_whole_stream(talk, tiny, stream):
    with talk() as socket:
        sampling = [{"temperature": 0, "max_tokens": 8}]
        socket.send_json({"type": "session.config", "sampling_params_list": sampling, "more": 1})
        send_all(socket, stream)
        socket.send_json({"type": "video.query", "text": QUESTION})
        messages = until(socket, "response.text.done")
        socket.send_json({"type": "video.done"})
        until(socket, "session.done")
    expected = lonely(tiny, stream, 10)
    assert messages[-1]["text"] == expected.text
    deltas = of(messages, "response.text.delta")
    assert "".join(delta["delta"] for delta in deltas) == expected.text
    assert messages[-1]["video_kept"] == expected.counts.video_kept
    assert messages[-1]["audio"] == expected.counts.audio
    acks = of(messages, "video.frame.ack")
    assert [ack["frame_id"] for ack in acks] == [f"frame-{i}" for i in range(10)]
    assert all(ack["accepted"] and ack["pts_ms"] == 500 * i for i, ack in enumerate(acks))
    (consumed,) = of(messages, "video.frames.consumed")
    assert consumed["frame_ids"] == [f"frame-{i}" for i in range(10)]
    assert consumed["latest_pts_ms"] == 4500
    (start,) = of(messages, "response.start")
    assert start["request_id"] == messages[-1]["request_id"] == consumed["request_id"]
    read = of(messages, "window.read")
    assert [window["number"] for window in read] == [0, 1]
    for window in read:
        rows, columns = window["grid"]
        assert all(len(grid) == rows * columns for grid in window["kept"])
        assert "".join(window["kept"]).count("1") == window["video_kept"]
        assert window["heard"].count("1") == window["audio_kept"] > 0


def test_the_method_changes_and_what_was_read_stays(talk, tiny, stream):
    frames, chunks = stream

    def send(socket, first, last):
        for i in range(first, last):
            socket.send_json(picture(frames[i], i))
            data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
            socket.send_json({"type": "audio.chunk", "data": data.decode()})

    with talk() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8})
        send(socket, 0, 5)
        socket.send_json({"type": "session.config", "omnizip": {"method": "all"}})
        messages = until(socket, "method.changed")
        assert messages[-1]["number"] == 1
        send(socket, 5, 10)
        socket.send_json({"type": "video.query", "text": QUESTION})
        messages += until(socket, "response.text.done")
    first, second = of(messages, "window.read")
    assert first["video_kept"] < first["video"] and second["video_kept"] == second["video"] > 0
    kept = [each["audio_kept"] + each["video_kept"] for each in (first, second)]
    assert first["remembered"] == [[0, kept[0]]] and first["work"] < 1
    assert second["remembered"] == [[0, kept[0]], [1, kept[1]]]
    assert first["work"] < second["work"] < 1

    state = begin_lonely(tiny)
    for number, window in enumerate(read_windows(tiny, stream, 10)):
        state = feed(tiny, state if number != 1 else change_method(tiny, state, None), window)
    assert messages[-1]["text"] == ask(tiny, state, QUESTION, max_new_tokens=8)[0].text


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"omnizip": {}},
        {"omnizip": {"method": "all", "memory": "fading"}},
        {"omnizip": {"method": "all"}, "system_prompt": "Be brief."},
        {"omnizip": {"method": "fastv"}},
        {"omnizip": {"method": "dycoke"}},
        {"omnizip": {"method": "omnizip", "settings": {"keep": 2}}},
    ],
)
def test_what_a_session_that_has_begun_cannot_change(talk, stream, change):
    with talk() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 4})
        send_all(socket, stream, 5)
        socket.send_json({"type": "session.config", **change})
        assert until(socket, "error")[-1]["code"] == 400
        socket.send_json({"type": "video.query", "text": QUESTION})
        assert until(socket, "response.text.done")[-1]["audio"] > 0  # all of it goes on


def test_questions_in_between_change_nothing(talk, tiny, stream):
    with talk() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8})
        answers = []
        for first, last in ((0, 5), (5, 10)):
            frames, chunks = stream
            for i in range(first, last):
                socket.send_json(picture(frames[i], i))
                data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
                socket.send_json({"type": "audio.chunk", "data": data.decode()})
            socket.send_json({"type": "video.query", "text": QUESTION})
            answers.append(until(socket, "response.text.done")[-1]["text"])
    assert answers == [lonely(tiny, stream, 5).text, lonely(tiny, stream, 10).text]


def test_what_was_said_is_remembered(talk, tiny, stream):
    """As the library's own steps remember it; what was incomplete when it was asked is not."""
    with talk() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8, "omnizip": {"keep": True}})
        send_all(socket, stream, 9)
        said = []
        for question in (QUESTION, "And before?"):
            socket.send_json({"type": "video.query", "text": question})
            said.append(until(socket, "response.text.done")[-1])
    *whole, rest = read_windows(tiny, stream, 9)
    state = begin_lonely(tiny)
    for window in whole:
        state = feed(tiny, state, window)
    first, _ = ask(tiny, state, QUESTION, window=rest, max_new_tokens=8)
    state = remembered(tiny, fork(state), QUESTION, first.text)
    second, _ = ask(tiny, state, "And before?", window=rest, max_new_tokens=8)
    assert len(whole) == 2 and [each["text"] for each in said] == [first.text, second.text]
    assert said[1]["prompt"] > said[0]["prompt"] + 8


def test_a_new_query_ends_the_answer_before_it(talk, server):
    gate = threading.Event()

    def held():
        gate.wait(WAIT)
        yield

    with talk() as socket:
        socket.send_json({"type": "session.config"})
        server.engine.submit(held(), lambda _: None)
        socket.send_json({"type": "video.query", "text": QUESTION, "max_tokens": 64})
        first = until(socket, "response.start")[-1]
        socket.send_json({"type": "video.query", "text": "And now?", "max_tokens": 4})
        assert until(socket, "response.cancelled")[-1]["request_id"] == first["request_id"]
        second = until(socket, "response.start")[-1]
        gate.set()
        messages = until(socket, "response.text.done")
        assert messages[-1]["request_id"] == second["request_id"] != first["request_id"]
        assert messages[-1]["made"] <= 4


def test_too_many_pictures_are_dropped_and_told(talk, stream):
    frame = stream[0][0]
    with talk() as socket:
        for i in range(4):
            socket.send_json(picture(frame, i / 10, frame_id=f"frame-{i}"))  # 20 a second
        acks = [until(socket, "video.frame.ack")[-1] for _ in range(4)]
    assert [ack["accepted"] for ack in acks] == [True, False, True, False]


def test_sessions_are_let_go_of_and_refused(talk, server):
    sockets = [talk() for _ in range(LIMITS.sessions)]
    for socket in sockets:
        socket.__enter__().send_json({"type": "session.config"})
        socket.send_json({"type": "nothing"})
        until(socket, "error")
    with talk() as one_more:
        one_more.send_json({"type": "session.config"})
        refused = until(one_more, "error")[-1]
        assert refused["code"] == 503 and "3 sessions are open" in refused["message"]
        with pytest.raises(WebSocketDisconnect):
            one_more.receive_json()
    for socket in sockets:
        socket.__exit__(None, None, None)
    with talk() as socket:
        socket.send_json({"type": "session.config"})
        socket.send_json({"type": "video.done"})
        until(socket, "session.done")


def malformed():
    """A thousand messages that mean nothing, of every kind."""
    draw = random.Random(0)
    junk = [None, True, -1, 1e999, "", "x" * 100, [], {}, {"a": 1}, "\ud800", "AAAA", 10**400]
    kinds = ["session.config", "video.frame", "audio.chunk", "video.query", "video", None, 3]
    names = ["data", "pts_ms", "capture_ts_ms", "text", "frame_id", "omnizip", "max_tokens"]
    for _ in range(1000):
        if draw.random() < 0.2:
            yield draw.choice(["", "{", "[]", "null", "1", '"', "[" * 5000, "\x00", '{"type":'])
            continue
        message = {name: draw.choice(junk) for name in draw.sample(names, draw.randrange(1, 5))}
        # What would be good is spoilt.
        message |= {"type": draw.choice(kinds), "max_tokens": draw.choice([0, "1", [], True, 1e9])}
        if message["type"] in ("video.frame", "audio.chunk"):
            message["data"] = draw.choice([None, 3, "%", "QUJD", [], {}])
        yield json.dumps(message)


def test_a_thousand_malformed_messages(talk):
    with talk() as socket:
        for message in malformed():
            socket.send_text(message)
            error = until(socket, "error")[-1]
            assert error["message"] and error["code"] in (400, 403, 408), (message, error)
        socket.send_json({"type": "video.query", "text": QUESTION, "max_tokens": 4})
        assert until(socket, "response.text.done")[-1]["made"] > 0


def test_sound_that_pauses_holds_up_no_pictures(tiny, stream):
    frames, chunks = stream
    incoming, sizes = Incoming(tiny.config.spec), []
    for i in range(24):
        sizes += [int(w.mel_length) for w in incoming.picture(frames[i % 10], i / 2)]
        if i < 2 or i >= 16:
            sound = np.concatenate(chunks[:2]).astype(np.float32) / 32768
            sizes += [int(w.mel_length) for w in incoming.sound(sound)]
    assert len(sizes) == 5 and sizes[0] > 0 and sizes[2] == 0 and sizes[4] > 0
    assert len(incoming.rest()) == 1 and len(incoming.rest()) == 1
