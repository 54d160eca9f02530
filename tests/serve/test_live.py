"""Live video over a WebSocket: answers, changes of method, limits, and malformed messages."""

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

import omnizip_jax.serve.server as server_module
from omnizip_jax import OmniZipConfig, PushSource, ask, feed, fork, init_stream, windows
from omnizip_jax.inference.generation import append_exchange
from omnizip_jax.inference.streaming import change_method
from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.live_assembler import LiveAssembler
from omnizip_jax.serve.memory_budget import Reservation
from omnizip_jax.serve.server import Server
from tests.serve.conftest import LIMITS, WAIT, ignore

PATH = "ws://127.0.0.1/v1/video/chat/stream"
QUESTION = "What happens?"
RATE = 16_000


@pytest.fixture(scope="module")
def server(tiny, decoders):
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warmup=False)
    yield Server(engine, "tiny", ServerConfig(limits=LIMITS), *decoders)
    engine.close(WAIT)


@pytest.fixture
def connect(server):
    """Opens sockets of one server."""
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:
        yield lambda: client.websocket_connect(PATH)


@pytest.fixture(scope="module")
def stream():
    """Five seconds: two frames per second, and a tone in chunks of a quarter of a second."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(10)]
    time = np.arange(5 * RATE) / RATE
    pcm = (8000 * np.sin(2 * np.pi * 440 * time)).astype("<i2")
    return frames, np.split(pcm, 20)


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def frame_message(frame, number, **more):
    return {"type": "video.frame", "data": png(frame), "pts_ms": 500 * number, **more}


def send_all(socket, stream, count=10):
    frames, chunks = stream
    for i in range(count):
        socket.send_json(frame_message(frames[i], i, frame_id=f"frame-{i}"))
        for chunk in chunks[2 * i : 2 * i + 2]:
            data = base64.b64encode(chunk.tobytes()).decode()
            socket.send_json({"type": "audio.chunk", "data": data})


def until(socket, kind):
    """Receive messages up to the first of a kind."""
    messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(socket.receive_json())
        assert messages[-1]["type"] != "error" or kind == "error", messages[-1]
    return messages


def of_type(messages, kind):
    return [message for message in messages if message["type"] == kind]


def read_windows(tiny, stream, count):
    """The windows that the library makes of the same stream."""
    frames, chunks = stream
    source = PushSource(RATE)
    source.push_frames(np.stack(frames[:count]), np.arange(count) / 2)
    source.push_audio(np.concatenate(chunks[: 2 * count]) / np.float32(32768))
    source.close()
    return list(windows(source, tiny.config.spec))


def begin_library(tiny):
    settings = {"capacity": LIMITS.capacity, "text_slots": LIMITS.text_slots}
    return init_stream(tiny, OmniZipConfig(), **settings)


def library_answer(tiny, stream, count):
    """The library's answer to the same stream."""
    state = begin_library(tiny)
    for window in read_windows(tiny, stream, count):
        state = feed(tiny, state, window)
    return ask(tiny, state, QUESTION, max_new_tokens=8)[0]


def test_an_answer_is_about_the_whole_stream(connect, tiny, stream):
    with connect() as socket:
        sampling = [{"temperature": 0, "max_tokens": 8}]
        socket.send_json({"type": "session.config", "sampling_params_list": sampling, "more": 1})
        send_all(socket, stream)
        socket.send_json({"type": "video.query", "text": QUESTION})
        messages = until(socket, "response.text.done")
        socket.send_json({"type": "video.done"})
        until(socket, "session.done")
    expected = library_answer(tiny, stream, 10)
    assert messages[-1]["text"] == expected.text
    deltas = of_type(messages, "response.text.delta")
    assert "".join(delta["delta"] for delta in deltas) == expected.text
    assert messages[-1]["video_kept"] == expected.counts.video_kept
    assert messages[-1]["audio"] == expected.counts.audio
    acks = of_type(messages, "video.frame.ack")
    assert [ack["frame_id"] for ack in acks] == [f"frame-{i}" for i in range(10)]
    assert all(ack["accepted"] and ack["pts_ms"] == 500 * i for i, ack in enumerate(acks))
    (consumed,) = of_type(messages, "video.frames.consumed")
    assert consumed["frame_ids"] == [f"frame-{i}" for i in range(10)]
    assert consumed["latest_pts_ms"] == 4500
    (start,) = of_type(messages, "response.start")
    assert start["request_id"] == messages[-1]["request_id"] == consumed["request_id"]
    read = of_type(messages, "window.read")
    assert [window["number"] for window in read] == [0, 1]
    for window in read:
        rows, columns = window["grid"]
        assert all(len(grid) == rows * columns for grid in window["kept"])
        assert "".join(window["kept"]).count("1") == window["video_kept"]
        assert window["heard"].count("1") == window["audio_kept"] > 0


@pytest.mark.slow  # programs of a second method
def test_a_new_method_applies_to_later_windows(connect, tiny, stream):
    frames, chunks = stream

    def send(socket, first, last):
        for i in range(first, last):
            socket.send_json(frame_message(frames[i], i))
            data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
            socket.send_json({"type": "audio.chunk", "data": data.decode()})

    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8})
        send(socket, 0, 5)
        socket.send_json({"type": "session.config", "omnizip": {"method": "all"}})
        messages = until(socket, "method.changed")
        assert messages[-1]["number"] == 1
        send(socket, 5, 10)
        socket.send_json({"type": "video.query", "text": QUESTION})
        messages += until(socket, "response.text.done")
    first, second = of_type(messages, "window.read")
    assert first["video_kept"] < first["video"] and second["video_kept"] == second["video"] > 0
    kept = [each["audio_kept"] + each["video_kept"] for each in (first, second)]
    assert first["remembered"] == [[0, kept[0]]] and first["work"] < 1
    assert second["remembered"] == [[0, kept[0]], [1, kept[1]]]
    assert first["work"] < second["work"] < 1

    state = begin_library(tiny)
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
def test_a_session_cannot_change_its_other_settings(connect, stream, change):
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 4})
        send_all(socket, stream, 5)
        socket.send_json({"type": "session.config", **change})
        assert until(socket, "error")[-1]["code"] == 400
        socket.send_json({"type": "video.query", "text": QUESTION})
        assert until(socket, "response.text.done")[-1]["audio"] > 0  # the session continues


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"n": 2}, "n"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"sampling_params_list": [{"repetition_penalty": 1.05}]}, "repetition_penalty"),
        ({"fps": 1}, "fps"),
        ({"mm_processor_kwargs": {"fps": 1}}, "mm_processor_kwargs.fps"),
        ({"mm_processor_kwargs": {"use_audio_in_video": False}}, "use_audio_in_video"),
        ({"stop": [""]}, "stop"),
        ({"omnizip": {"max_frames": 8}}, "omnizip.max_frames"),
    ],
)
def test_fields_that_are_not_supported_are_refused_by_name(connect, fields, param):
    kinds = ["session.config", "video.query"] if "omnizip" not in fields else ["session.config"]
    with connect() as socket:
        for kind in kinds:
            socket.send_json({"type": kind, "text": QUESTION, **fields})
            error = until(socket, "error")[-1]
            assert error["code"] == 400 and param in error["param"]
            assert param.removeprefix("omnizip.") in error["message"]


def test_stop_strings_and_more_tokens_than_there_are(connect, tiny, stream):
    text = library_answer(tiny, stream, 5).text
    stop = text[len(text) // 2 :][:2]
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 100_000, "stop": stop})
        send_all(socket, stream, 5)
        answers = []
        for fields in ({"max_tokens": 8}, {"max_tokens": 8, "stop": None}, {"stop": []}):
            socket.send_json({"type": "video.query", "text": QUESTION, **fields})
            answers.append(until(socket, "response.text.done")[-1])
    assert (answers[0]["text"], answers[0]["finish"]) == (text[: text.index(stop)], "stop")
    assert answers[1]["text"] == text
    assert answers[2]["text"].startswith(text[:4]) and answers[2]["made"] <= LIMITS.tokens


def test_a_configuration_may_be_repeated_and_its_answers_changed(connect, server, stream):
    config = {"type": "session.config", "max_tokens": 4, "system_prompt": "Be brief."}
    config["omnizip"] = {"method": "omnizip", "memory": "fading", "audio": True}
    changes = []
    with connect() as socket, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.engine, "change_method", changes.append)
        socket.send_json(config)
        socket.send_json(config)
        socket.send_json(config | {"request_id": "again"})
        socket.send_json(config | {"max_tokens": 2})
        send_all(socket, stream, 5)
        for expected in (2, 1):
            socket.send_json({"type": "video.query", "text": QUESTION})
            assert until(socket, "response.text.done")[-1]["made"] <= expected
            socket.send_json({"type": "session.config", "max_tokens": 1})
        for name, value in (("memory", "recent"), ("video", False)):
            socket.send_json({"type": "session.config", "omnizip": {name: value}})
            assert name in until(socket, "error")[-1]["message"]
    assert changes == []


def test_the_number_of_sockets_is_bounded(connect, server):
    """Each may hold a message that is being received."""
    with Reservation(server._messages) as others:
        others.ensure(2 * LIMITS.sessions * 32 * 2**20)
        with connect() as socket, pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 1013 and "live messages hold 192" in closed.value.reason
    assert server._messages.used == 0


def test_base64_may_have_line_breaks_and_be_a_data_url(connect, stream):
    frames, chunks = stream
    with connect() as socket:
        for number, prefix in enumerate(("", "data:image/png;base64,", "DATA:image/png;BASE64,")):
            message = frame_message(frames[number], number, frame_id="a")
            data = base64.b64decode(message["data"])
            message["data"] = prefix + base64.encodebytes(data).decode()
            socket.send_json(message)
            assert until(socket, "video.frame.ack")[-1]["accepted"]
        data = base64.encodebytes(chunks[0].tobytes()).decode()
        socket.send_json({"type": "audio.chunk", "data": data})
        socket.send_json({"type": "audio.chunk", "data": data[:-3]})
        assert "not base64" in until(socket, "error")[-1]["message"]


def test_a_bug_is_told_as_a_bug(connect, stream, monkeypatch, caplog):
    """While a window is read, and while a window is assembled."""

    def broken(*_, **__):
        return np.zeros((3, 4)) @ np.zeros((3, 4))

    for name in ("omnizip_jax.serve.engine.feed", "omnizip_jax.serve.live.decode_frame"):
        with connect() as socket, monkeypatch.context() as patch:
            patch.setattr(name, broken)
            send_all(socket, stream, 5)
            error = until(socket, "error")[-1]
            assert error["code"] == 500 and "matmul" not in error["message"]
            assert "matmul" in caplog.text
            caplog.clear()


def test_an_image_that_is_too_thin_is_the_clients_error(connect):
    with connect() as socket:
        socket.send_json(frame_message(np.zeros((1, 500, 3), np.uint8), 0))
        error = until(socket, "error")[-1]
        assert error["code"] == 400 and "500 x 1 pixels" in error["message"]


def test_questions_do_not_change_the_stream(connect, tiny, stream):
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8})
        answers = []
        for first, last in ((0, 5), (5, 10)):
            frames, chunks = stream
            for i in range(first, last):
                socket.send_json(frame_message(frames[i], i))
                data = base64.b64encode(np.concatenate(chunks[2 * i : 2 * i + 2]).tobytes())
                socket.send_json({"type": "audio.chunk", "data": data.decode()})
            socket.send_json({"type": "video.query", "text": QUESTION})
            answers.append(until(socket, "response.text.done")[-1]["text"])
    assert answers == [library_answer(tiny, stream, 5).text, library_answer(tiny, stream, 10).text]


def test_exchanges_are_kept_in_the_session(connect, tiny, stream):
    """As the library's steps do it; windows that were incomplete at a question are not kept."""
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 8, "omnizip": {"keep": True}})
        send_all(socket, stream, 9)
        answers = []
        for question in (QUESTION, "And before?"):
            socket.send_json({"type": "video.query", "text": question})
            answers.append(until(socket, "response.text.done")[-1])
    *whole, rest = read_windows(tiny, stream, 9)
    state = begin_library(tiny)
    for window in whole:
        state = feed(tiny, state, window)
    first, _ = ask(tiny, state, QUESTION, window=rest, max_new_tokens=8)
    state = append_exchange(tiny, fork(state), QUESTION, first.text)
    second, _ = ask(tiny, state, "And before?", window=rest, max_new_tokens=8)
    assert len(whole) == 2 and [each["text"] for each in answers] == [first.text, second.text]
    assert answers[1]["prompt"] > answers[0]["prompt"] + 8


def test_a_new_query_cancels_the_answer_before_it(connect, server):
    gate = threading.Event()

    def held():
        gate.wait(WAIT)
        yield

    with connect() as socket:
        socket.send_json({"type": "session.config"})
        server.engine.submit(held(), ignore)
        socket.send_json({"type": "video.query", "text": QUESTION, "max_tokens": 64})
        first = until(socket, "response.start")[-1]
        socket.send_json({"type": "video.query", "text": "And now?", "max_tokens": 4})
        assert until(socket, "response.cancelled")[-1]["request_id"] == first["request_id"]
        second = until(socket, "response.start")[-1]
        gate.set()
        messages = until(socket, "response.text.done")
        assert messages[-1]["request_id"] == second["request_id"] != first["request_id"]
        assert messages[-1]["made"] <= 4


def test_excess_frames_are_dropped_and_reported(connect, stream):
    frame = stream[0][0]
    with connect() as socket:
        for i in range(4):
            socket.send_json(frame_message(frame, i / 10, frame_id=f"frame-{i}"))  # 20 a second
        acks = [until(socket, "video.frame.ack")[-1] for _ in range(4)]
    assert [ack["accepted"] for ack in acks] == [True, False, True, False]


def test_sessions_are_freed_and_excess_ones_refused(connect, server):
    sockets = [connect() for _ in range(LIMITS.sessions)]
    for socket in sockets:
        socket.__enter__().send_json({"type": "session.config"})
        socket.send_json({"type": "nothing"})
        until(socket, "error")
    with connect() as one_more:
        one_more.send_json({"type": "session.config"})
        refused = until(one_more, "error")[-1]
        assert refused["code"] == 503 and "3 sessions are open" in refused["message"]
        with pytest.raises(WebSocketDisconnect):
            one_more.receive_json()
    for socket in sockets:
        socket.__exit__(None, None, None)
    with connect() as socket:
        socket.send_json({"type": "session.config"})
        socket.send_json({"type": "video.done"})
        until(socket, "session.done")


def malformed():
    """A thousand invalid messages of every type."""
    draw = random.Random(0)
    junk = [None, True, -1, 1e999, "", "x" * 100, [], {}, {"a": 1}, "\ud800", "AAAA", 10**400]
    kinds = ["session.config", "video.frame", "audio.chunk", "video.query", "video", None, 3]
    names = ["data", "pts_ms", "capture_ts_ms", "text", "frame_id", "omnizip", "max_tokens"]
    for _ in range(1000):
        if draw.random() < 0.2:
            yield draw.choice(["", "{", "[]", "null", "1", '"', "[" * 5000, "\x00", '{"type":'])
            continue
        message = {name: draw.choice(junk) for name in draw.sample(names, draw.randrange(1, 5))}
        # No message is valid.
        message |= {"type": draw.choice(kinds), "max_tokens": draw.choice([0, "1", [], True, 1e9])}
        if message["type"] in ("video.frame", "audio.chunk"):
            message["data"] = draw.choice([None, 3, "%", "QUJD", [], {}])
        yield json.dumps(message)


@pytest.mark.slow  # a fuzzing trial
def test_a_thousand_malformed_messages(connect):
    with connect() as socket:
        for message in malformed():
            socket.send_text(message)
            error = until(socket, "error")[-1]
            assert error["message"] and error["code"] in (400, 403, 408), (message, error)
        socket.send_json({"type": "video.query", "text": QUESTION, "max_tokens": 4})
        assert until(socket, "response.text.done")[-1]["made"] > 0


def test_a_pause_of_the_audio_does_not_delay_frames(tiny, stream):
    frames, chunks = stream
    assembler, sizes = LiveAssembler(tiny.config.spec), []
    for i in range(24):
        sizes += [int(w.mel_length) for w in assembler.push_frame(frames[i % 10], i / 2)]
        if i < 2 or i >= 16:
            sound = np.concatenate(chunks[:2]).astype(np.float32) / 32768
            sizes += [int(w.mel_length) for w in assembler.push_audio(sound)]
    assert len(sizes) == 5 and sizes[0] > 0 and sizes[2] == 0 and sizes[4] > 0
    assert len(assembler.incomplete()) == 1 and len(assembler.incomplete()) == 1


FRAME = np.zeros((64, 96, 3), np.uint8)


def frames_at(assembler, times):
    """Push frames; returns the begins of the windows, and the jumps."""
    starts, jumps = [], []
    for time in times:
        starts += [assembler.start for _ in assembler.push_frame(FRAME, time)]
        if assembler.jumped_from is not None:
            jumps.append((assembler.jumped_from, time))
    return starts, jumps


@pytest.mark.parametrize("first", [0.0, 3.0, 59.0, 1e5, 1.76e9, -7.5])
@pytest.mark.parametrize("audio", [True, False])
def test_frames_may_begin_at_any_time(tiny, first, audio):
    assembler = LiveAssembler(tiny.config.spec, has_audio=audio)
    starts, jumps = frames_at(assembler, first + np.arange(14) / 2)
    assert starts == pytest.approx([first, first + 2, first + 4]) and not jumps


@pytest.mark.parametrize("pause", [10.5, 70.0, 4000.0, -1.5, -3600.0])
def test_a_stream_goes_on_after_a_pause_and_after_a_clock_that_goes_back(tiny, pause):
    """The incomplete window is completed; no window stands for the pause."""
    assembler = LiveAssembler(tiny.config.spec, has_audio=False)
    before, after = np.arange(7) / 2, 3 + pause + np.arange(7) / 2
    assert frames_at(assembler, before) == ([0.0], [])
    starts, jumps = frames_at(assembler, after)
    assert starts == pytest.approx([2.0, 3 + pause]) and jumps == [(3.0, 3 + pause)]
    assert frames_at(assembler, 3 + pause + np.array([3.5, 4.0])) == ([5 + pause], [])


def test_a_short_pause_holds_the_frame(tiny):
    assembler = LiveAssembler(tiny.config.spec, has_audio=False)
    assert frames_at(assembler, [0.0, 0.5, 9.0]) == ([0.0, 2.0, 4.0, 6.0], [])


def test_audio_that_goes_on_bridges_a_pause_of_the_frames(tiny):
    """A hidden tab sends audio alone; the windows of that time have no video."""
    assembler, spec = LiveAssembler(tiny.config.spec), tiny.config.spec
    second = np.zeros(RATE, np.float32)
    grids = []
    for i in range(100):
        windows = [*assembler.push_audio(second)]
        if i < 4 or i >= 90:
            windows += [w for t in (i, i + 0.5) for w in assembler.push_frame(FRAME, t + 1000)]
            assert assembler.jumped_from is None
        grids += [int(window.grid_mask.sum()) for window in windows]
    assert grids[1] == spec.grids and not any(grids[3:44])
    assert grids[46:] == [spec.grids] * len(grids[46:]) and len(grids) >= 49


def test_frames_that_lag_far_behind_the_audio_are_moved(tiny):
    """Their windows are complete already: without that all would be dropped."""
    assembler = LiveAssembler(tiny.config.spec)
    grids = []
    for i in range(40):
        windows = [*assembler.push_audio(np.zeros(RATE, np.float32))]
        if i >= 10:  # the clock of the frames begins when the camera does, or stands for a while
            time = i - 10 if i < 20 else i - 16
            windows += [w for t in (time, time + 0.5) for w in assembler.push_frame(FRAME, t)]
        grids += [int(window.grid_mask.sum()) for window in windows]
    assert all(grids[-4:]) and sum(map(bool, grids)) >= 12


def test_frames_in_the_wrong_order_are_refused_with_a_reason(tiny):
    assembler = LiveAssembler(tiny.config.spec)
    frames_at(assembler, [0.0, 0.5, 1.0])
    with pytest.raises(RequestError, match=r"in the order of their times, got 0\.500 s after 1\.0"):
        list(assembler.push_frame(FRAME, 0.5))
    assert frames_at(assembler, [1.5])[1] == []


def test_a_pause_is_reported_and_windows_have_their_times(connect, stream):
    frame = stream[0][0]
    with connect() as socket:
        socket.send_json({"type": "session.config", "omnizip": {"audio": False}})
        messages = []
        for begin, read in ((60_000, 1), (130_000, 3), (0, 5)):
            for time in range(begin, begin + 3000, 500):
                data = {"data": png(frame), "pts_ms": time, "frame_id": str(time)}
                socket.send_json({"type": "video.frame", **data})
            while len(of_type(messages, "window.read")) < read:
                messages += until(socket, "window.read")
    starts = [window["start"] for window in of_type(messages, "window.read")]
    assert starts == pytest.approx([60.0, 62.0, 130.0, 132.0, 0.0])
    jumps = [(jump["from_ms"], jump["to_ms"]) for jump in of_type(messages, "stream.jump")]
    assert jumps == [(62_500, 130_000), (132_500, 0)]
    acks = of_type(messages, "video.frame.ack")
    assert len(acks) > 12 and all(ack["accepted"] for ack in acks)


def test_messages_name_the_request_that_caused_them(connect, stream):
    """Errors of frames and of a change of method are not those of the question before them."""
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 4, "request_id": "first"})
        send_all(socket, stream, 5)
        socket.send_json({"type": "video.query", "text": QUESTION, "request_id": "question"})
        socket.send_json({"type": "video.frame", "data": "%", "pts_ms": 5000})
        socket.send_json(
            {"type": "session.config", "request_id": "change", "omnizip": {"method": "fastv"}}
        )
        socket.send_json({"type": "video.query", "text": " ", "request_id": "empty"})
        messages = []
        while len(of_type(messages, "error")) < 3 or not of_type(messages, "response.text.done"):
            messages.append(socket.receive_json())
    errors = [(each["cause"], each.get("request_id")) for each in of_type(messages, "error")]
    assert errors == [
        ("video.frame", None),
        ("session.config", "change"),
        ("video.query", "empty"),
    ]
    (done,) = of_type(messages, "response.text.done")
    assert done["request_id"] == "question"
    assert not of_type(messages, "response.cancelled")


def test_a_request_for_the_method_in_use_is_confirmed(connect):
    """Also after a request for another method that failed."""
    with connect() as socket:
        config = {"type": "session.config", "omnizip": {"method": "omnizip"}}
        socket.send_json(config)
        socket.send_json(config | {"request_id": "same"})
        changed = until(socket, "method.changed")[-1]
        assert changed == {"type": "method.changed", "number": 0, "request_id": "same"}
        other = {"request_id": "other", "omnizip": {"method": "fastv"}}
        socket.send_json(config | other)
        assert until(socket, "error")[-1]["request_id"] == "other"
        socket.send_json(config | {"request_id": "back"})
        assert until(socket, "method.changed")[-1]["request_id"] == "back"


def test_every_question_has_a_start_and_an_end(connect, server):
    """Also those that are superseded before their first step."""
    gate = threading.Event()

    def held():
        gate.wait(WAIT)
        yield

    names = [f"question-{i}" for i in range(5)]
    with connect() as socket:
        socket.send_json({"type": "session.config", "max_tokens": 4})
        server.engine.submit(held(), ignore)
        for name in names:
            socket.send_json({"type": "video.query", "text": QUESTION, "request_id": name})
        gate.set()
        messages = until(socket, "response.text.done")
    assert [each["request_id"] for each in of_type(messages, "response.start")] == names
    cancelled = [each["request_id"] for each in of_type(messages, "response.cancelled")]
    assert [*cancelled, messages[-1]["request_id"]] == names


def test_live_frames_wait_for_no_clip(server, monkeypatch):
    """More slow clips and downloads than the server has threads and decoders."""
    gate, waiting = threading.Event(), threading.Semaphore(0)

    def slow(*_):
        waiting.release()
        gate.wait(WAIT)
        raise RequestError("stop")

    monkeypatch.setattr(server_module, "store_medium", slow)
    video = {"type": "video_url", "video_url": {"url": "a.mp4"}}
    request = {"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}
    with TestClient(server.app(), base_url="http://127.0.0.1") as client:

        def ask():
            client.post("/v1/chat/completions", json={"messages": [request]})

        threads = [threading.Thread(target=ask) for _ in range(45)]
        for thread in threads:
            thread.start()
        for _ in range(server_module._DOWNLOAD_THREADS):
            assert waiting.acquire(timeout=WAIT)
        with client.websocket_connect(PATH) as socket:
            socket.send_json(frame_message(np.zeros((8, 8, 3), np.uint8), 0, frame_id="a"))
            assert until(socket, "video.frame.ack")[-1]["accepted"] and not gate.is_set()
            gate.set()
        for thread in threads:
            thread.join()
