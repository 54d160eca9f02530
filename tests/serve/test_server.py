"""The HTTP API: answers, streams and errors.

The fast tests replace the steps of an answer with a stub; the slow ones use the tiny model.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import copy
import functools
import json
import random
import time
import types

import numpy as np
import pytest
from starlette.testclient import TestClient

import omnizip_jax.serve.server as server_module
from benchmarks.bouncing_clip import write_clip
from omnizip_jax import OmniZipConfig, WindowSpec, converse, generate
from omnizip_jax.compression import AllTokens
from omnizip_jax.serve.answer_steps import AnswerDone, AnswerStarted, TextDelta
from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.media_workers import DecoderPool
from omnizip_jax.serve.memory_budget import Reservation
from omnizip_jax.serve.server import Server
from tests.serve.conftest import LIMITS, WAIT

QUESTION = "What happens?"
URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """The folder that requests may name, and a file beside it."""
    folder = tmp_path_factory.mktemp("media") / "allowed"
    folder.mkdir()
    write_clip(folder / "clip.mp4", seconds=5, size=(96, 64))
    (folder.parent / "secret.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "way_out.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:5,\nclip.mp4\n#EXT-X-ENDLIST\n")
    (folder / "words.mp4").write_text("not a video")
    return folder


def stub_answer(engine, clips, parts, system, method, request, key):
    """Steps whose answer is the request itself, as JSON."""
    yield AnswerStarted()
    text = json.dumps([len(clips), parts, system, type(method).__name__, request.history])
    for piece in (text[:5], text[5:]):
        yield TextDelta(piece)
    yield AnswerDone(50, 20, 60, 30, text, "length", 100, 7, {"answer": 0.5})


@pytest.fixture(scope="module")
def server(media, decoders):
    """A server whose answers are stubs."""
    spec = WindowSpec(grid_slots=16)
    config = types.SimpleNamespace(
        spec=spec, window_positions=50, text=types.SimpleNamespace(max_positions=250)
    )
    params = types.SimpleNamespace(config=config)
    engine = Engine(params, OmniZipConfig(), LIMITS)
    engine.start(warmup=False)
    config = ServerConfig(limits=LIMITS, media_folder=media)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "answer_about_clips", stub_answer)
        yield Server(engine, "tiny", config, *decoders)
    engine.close(WAIT)


@pytest.fixture(scope="module")
def client(server):
    with TestClient(server.app(), base_url=URL) as client:
        yield client


@pytest.fixture(scope="module")
def tiny_server(tiny, media):
    """A server of the tiny model, with a decoder process."""
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warmup=False)
    decoders, config = DecoderPool(1, WAIT), ServerConfig(limits=LIMITS, media_folder=media)
    yield Server(engine, "tiny", config, decoders, decoders)
    engine.close(WAIT)
    decoders.close()


@pytest.fixture(scope="module")
def tiny_client(tiny_server):
    with TestClient(tiny_server.app(), base_url=URL) as client:
        yield client


def body(*content, **more):
    messages = [{"role": "user", "content": list(content)}]
    return {"model": "tiny", "messages": messages, "max_tokens": 8, **more}


def text(words=QUESTION):
    return {"type": "text", "text": words}


def video(url="clip.mp4"):
    return {"type": "video_url", "video_url": {"url": url}}


def post(client, request):
    answer = client.post("/v1/chat/completions", json=request)
    return answer.status_code, answer.json()


def chunks(client, request):
    """The chunks of a streamed answer."""
    with client.stream("POST", "/v1/chat/completions", json=request | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def check_stream(client, request):
    """The streamed answer equals the whole one."""
    request = request | {"stream_options": {"include_usage": True}}
    whole, pieces = post(client, request)[1], chunks(client, request)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *_, end, usage = pieces
    answer = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces[:-1])
    assert answer == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_an_answer_has_openais_format(client):
    status, answer = post(client, body(text("Before."), video(), text(), omnizip={"method": "all"}))
    assert status == 200 and answer["object"] == "chat.completion" and answer["model"] == "tiny"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length"
    clips, parts, _, method, history = json.loads(choice["message"]["content"])
    assert (clips, parts, method, history) == (1, ["Before.", 0], "AllTokens", [])
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        *(100, 7),
        107,
    )
    assert usage["omnizip"] == {
        **{"audio": 50, "audio_kept": 20, "video": 60, "video_kept": 30},
        **{"media": 110, "media_kept": 50, "missing": []},
    }


def test_usage_names_a_modality_without_tokens():
    silent = AnswerDone(0, 0, 60, 30, "No.", "stop", 40, 2, {})
    assert server_module._usage(silent)["usage"]["omnizip"]["missing"] == ["audio"]


def test_a_streamed_answer_equals_the_whole_one(client):
    check_stream(client, body(video(), text()))


def test_earlier_turns_and_system_messages(client):
    request = body(video(), text())
    request["messages"] = [
        {"role": "system", "content": "Be brief."},
        *request["messages"],
        {"role": "assistant", "content": "It rained."},
        {"role": "user", "content": "And then?"},
    ]
    answer = post(client, request)[1]["choices"][0]["message"]["content"]
    _, parts, system, _, history = json.loads(answer)
    assert (parts, system, history) == ([0], "Be brief.", [[QUESTION, "It rained."]])


def test_an_internal_error_is_a_500(server, client, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "answer_about_clips", lambda *_: iter([1 / 0]))
    quiet = TestClient(server.app(), base_url=URL, raise_server_exceptions=False)
    status, answer = post(quiet, body(text()))
    assert status == 500 and answer["error"]["type"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text and "division" not in answer["error"]["message"]


def broken(*_, **__):
    return np.zeros((3, 4)) @ np.zeros((3, 4))


@pytest.mark.parametrize("name", ["read_chat", "store_medium", "decode_clip", "clip_seconds"])
def test_a_value_error_inside_is_a_500(server, monkeypatch, caplog, name):
    monkeypatch.setattr(server_module, name, broken)
    with TestClient(server.app(), base_url=URL, raise_server_exceptions=False) as quiet:
        status, answer = post(quiet, body(video(), text()))
    assert status == 500 and answer["error"]["type"] == "internal_error"
    assert "Traceback" in caplog.text and "matmul" in caplog.text
    assert "matmul" not in answer["error"]["message"]


def test_long_clips_are_refused_before_one_is_decoded(client, monkeypatch):
    """Three clips of 5 s last longer than the positions of five windows allow."""
    assert post(client, body(video(), video(), text()))[0] == 200
    monkeypatch.setattr(server_module, "decode_clip", broken)
    status, answer = post(client, body(video(), video(), video(), text()))
    assert status == 400, answer
    assert "the clips last 15 s together" in answer["error"]["message"]
    assert "positions for 10 s" in answer["error"]["message"]


def test_memory_of_clips_is_reserved_before_they_are_decoded(server, client, monkeypatch):
    with Reservation(server._decoded) as others:
        others.ensure(LIMITS.clip_bytes)
        monkeypatch.setattr(server_module, "decode_clip", broken)
        status, answer = post(client, body(video(), text()))
    assert status == 503 and "decoded clips hold 4096 of 4096 MiB" in answer["error"]["message"]
    monkeypatch.undo()
    assert post(client, body(video(), text()))[0] == 200 and server._decoded.used == 0


def test_memory_of_bodies_is_bounded_together(server, client):
    """The rest of a refused body is read, so that its client reads the reason."""
    content = json.dumps(body(text())).encode() + b" " * 2**20
    with Reservation(server._bodies) as others:
        others.ensure(LIMITS.bodies)
        for data in (content, iter([content[:100], content[100:]])):  # with a length, and without
            answer = client.post("/v1/chat/completions", content=data)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert "request bodies hold 256 of 256 MiB" in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", content=content).status_code == 200
    assert server._bodies.used == 0


def test_a_body_that_states_to_be_too_large_is_not_read(client):
    def parts():
        yield b" "
        raise AssertionError("read on")

    length = str(2 * LIMITS.upload)
    headers = {"Content-Length": length}
    answer = client.post("/v1/chat/completions", content=parts(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ([], 400, "JSON object"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "no text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "x"}] * 65}, 400, "at most 64"),
        ({"messages": [{"role": "user", "content": "x" * 40_000}]}, 400, "characters"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"messages": [{"role": "user", "content": ["x", *[video()] * 63]}] * 2}, 400, "126 clips"),
        (body(text(), model="gpt"), 404, "no model 'gpt'"),
        (body(text(), n=2), 400, "n must be 1"),
        (body(text(), max_tokens=True), 400, "from 1 to 64"),
        (body(text(), temperature="hot"), 400, "temperature"),
        (body(text(), temperature=-1), 400, "temperature"),
        (body(text(), temperature=10**400), 400, "too large"),
        (body(text(), top_p=2), 400, "top_p"),
        (body(text(), stop=[""]), 400, "stop"),
        (body(text(), omnizip={"method": "magic"}), 400, "must be one of omnizip"),
        (body(text(), omnizip={"method": ["all"]}), 400, "must be one of omnizip"),
        (body(text(), omnizip={"method": "omnizip", "settings": {"keep": "x"}}), 400, "keep"),
        (body(text(), omnizip={"method": "all", "settings": {"a": 1}}), 400, "settings"),
        (body(text(), omnizip={"method": "omnizip", "settings": {"keep": 7}}), 400, "keep"),
        (body(text(), omnizip={"method": "omnizip", "settings": {"keep": [1]}}), 400, "keep"),
        (body({"type": "image_url"}, text()), 400, "must be of type text, video_url"),
        (body(video("https://example.com/clip.mp4"), text()), 403, "--allow-remote"),
        (body(video("../secret.mp4"), text()), 403, "no file below"),
        (body(video("/etc/passwd"), text()), 403, "no file below"),
        (body(video("way_out.mp4"), text()), 403, "no file below"),
        (body(video("file:///etc/passwd"), text()), 403, "no file below"),
        (body(video("nowhere.mp4"), text()), 403, "no file below"),
        (body(video("a\0b"), text()), 403, "no file below"),
        (body(video("\ud800"), text()), 403, "no file below"),
        (body(video("rtsp://127.0.0.1/"), text()), 400, "must begin with"),
        (body(video("data:video/mp4;base64,%%%"), text()), 400, "not base64"),
        (body(video("data:nothing"), text()), 400, "comma"),
        (body(video("list.m3u8"), text()), 400, "cannot be opened"),
        (body(video("words.mp4"), text()), 400, "cannot be opened"),
    ],
)
def test_a_bad_request_is_refused_with_a_reason(client, media, request_, status, message):
    answer = client.post("/v1/chat/completions", content=json.dumps(request_))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert str(media) not in error["message"]  # no local path is disclosed


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"messages": NaN}'])
def test_invalid_json_is_refused(client, raw):
    answer = client.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_large_body_is_refused(client, monkeypatch):
    monkeypatch.setattr(server_module, "_TEXT_SIZE", -int(LIMITS.upload * 4 / 3) + 100)
    answer = client.post("/v1/chat/completions", content=b" " * 101)
    assert answer.status_code == 413


def check_other_paths(client):
    assert client.get("/health").text == "alive" and client.get("/ready").status_code == 200
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny"]
    facts = models[0]["omnizip"]
    assert facts["streaming"] == ["omnizip", "all", "random", "surprise"]
    assert facts["default"]["method"] == "omnizip" and facts["default"]["settings"]["keep"] is None
    assert facts["capacity"] == LIMITS.capacity and facts["window_seconds"] == 2
    assert OmniZipConfig(**facts["default"]["settings"]) == OmniZipConfig()
    post(client, body(text()))
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values["omnizip_sessions"] == "0.0"
    assert client.get("/v1/models/tiny").json() == models[0]
    missing = client.get("/v1/models/other/name")
    assert missing.status_code == 404 and "no model 'other/name'" in missing.text
    assert client.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get("/v1/chat/completions").status_code == 405
    return values


def test_other_paths(client):
    check_other_paths(client)


def test_a_full_server_answers_503(client, server, monkeypatch):
    def refuse(*_, **__):
        raise RequestError("full", 503)

    monkeypatch.setattr(server.engine, "submit", refuse)
    for stream in (False, True):
        answer = client.post("/v1/chat/completions", json=body(text(), stream=stream))
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["message"] == "full"


def long_answer(made):
    """Steps of an answer whose encoding takes long; each is appended to ``made``."""

    def steps(*_):
        for _ in range(1000):
            made.append(time.sleep(0.01))
            yield None
        yield AnswerStarted()

    return steps


@pytest.mark.parametrize("stream", [False, True])
def test_work_stops_when_the_client_leaves_before_the_first_event(server, monkeypatch, stream):
    made, sent = [], []
    monkeypatch.setattr(server_module, "answer_about_clips", long_answer(made))
    raw = json.dumps(body(text(), stream=stream)).encode()
    messages = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        while len(made) < 3:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    scope |= {"headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http"}
    asyncio.run(server.app()(scope, receive, send))
    count = len(made)
    time.sleep(0.1)
    assert sent[0]["status"] == 499 and len(made) <= count + 1 < 100


def test_a_server_is_ready_when_its_decoders_are(server, client, monkeypatch):
    for decoders in (server.decoders, server.frame_decoders):
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "ready", False)
            assert client.get("/ready").status_code == 503
    assert client.get("/ready").status_code == 200


def check_openai_package(client, expected, kept):
    openai = pytest.importorskip("openai")
    api = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", http_client=client, max_retries=0)
    request = {"model": "tiny", "messages": body(video(), text())["messages"], "max_tokens": 8}
    answer = api.chat.completions.create(**request, extra_body={"omnizip": {"method": "omnizip"}})
    assert answer.choices[0].message.content == expected
    assert answer.usage.omnizip["media_kept"] == kept
    pieces = api.chat.completions.create(**request, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    with contextlib.suppress(openai.NotFoundError):
        api.chat.completions.create(**request | {"model": "other"})
        raise AssertionError("another model answered")
    assert [model.id for model in api.models.list()] == ["tiny"]


def test_the_openai_package_as_a_client(client):
    expected = post(client, body(video(), text()))[1]["choices"][0]["message"]["content"]
    check_openai_package(client, expected, 50)


@pytest.mark.slow  # the tiny model
class TestTinyModel:
    def test_an_answer_equals_the_librarys(self, tiny_client, tiny_server, tiny, media):
        expected = generate(tiny, str(media / "clip.mp4"), QUESTION, max_new_tokens=8)
        data = base64.b64encode((media / "clip.mp4").read_bytes()).decode()
        read = tiny_server.engine.metrics.clips_read._value
        before = read.get()
        for url in ("clip.mp4", f"file://{media}/clip.mp4", f"data:video/mp4;base64,{data}"):
            status, answer = post(tiny_client, body(video(url), text()))
            assert status == 200, answer
            assert answer["choices"][0]["message"] == {
                "role": "assistant",
                "content": expected.text,
            }
            usage, counts = answer["usage"], expected.counts
            assert usage["prompt_tokens"] == counts.text + counts.kept
            assert usage["completion_tokens"] == counts.generated
            assert usage["omnizip"]["media"] == counts.media
            assert usage["omnizip"]["media_kept"] == counts.kept
        assert read.get() - before == 2  # as a file, and as data

    def test_a_streamed_answer_equals_the_whole_one(self, tiny_client):
        check_stream(tiny_client, body(video(), text()))

    def test_a_cached_clip_is_not_decoded(self, tiny_client, tiny_server, monkeypatch):
        first = post(tiny_client, body(video(), text()))[1]

        def decode(*_):
            raise AssertionError("decoded again")

        monkeypatch.setattr(tiny_server.decoders, "call", decode)
        again = post(tiny_client, body(video(), text()))[1]
        assert again["choices"] == first["choices"] and again["usage"] == first["usage"]

    def test_method_settings_texts_and_stop(self, tiny_client, tiny, media):
        parts = ["Before.", {"video": str(media / "clip.mp4")}, QUESTION]
        settings = {"compression": AllTokens(), "max_new_tokens": 8, "system": "Be brief."}
        expected = converse(tiny, parts, **settings)
        request = body(text("Before."), video(), text(), omnizip={"method": "all"}, unknown=[1])
        request["messages"].insert(0, {"role": "system", "content": "Be brief."})
        answer = post(tiny_client, request)[1]
        content = answer["choices"][0]["message"]["content"]
        assert content == expected.text
        assert answer["usage"]["omnizip"]["media_kept"] == expected.counts.media
        middle = content[len(content) // 2 :][:2]
        stopped = post(tiny_client, request | {"stop": [middle]})[1]["choices"][0]
        assert stopped["finish_reason"] == "stop"
        assert stopped["message"]["content"] == content[: content.index(middle)]
        options = {"method": "omnizip", "settings": {"keep": 0.35}}
        answer = post(tiny_client, body(video(), text(), omnizip=options))[1]
        usage = answer["usage"]["omnizip"]
        assert usage["media_kept"] == round(0.35 * usage["media"])

    def test_a_question_before_its_clip_follows_it(self, tiny_client):
        orders = ((text(), video()), (video(), text()))
        before, after = (post(tiny_client, body(*order))[1] for order in orders)
        assert before["choices"] == after["choices"]

    def test_several_turns_and_sampling(self, tiny_client):
        request = body(video(), text(), temperature=1.0, seed=-3, max_completion_tokens=6)
        first, again = post(tiny_client, request)[1], post(tiny_client, request)[1]
        assert first["choices"] == again["choices"]
        assert first["usage"]["completion_tokens"] <= 6
        request["messages"] += [
            {"role": "assistant", "content": "It rained."},
            {"role": "user", "content": "And then?"},
        ]
        second = post(tiny_client, request)[1]
        assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
        assert second["usage"]["omnizip"] == first["usage"]["omnizip"]
        assert post(tiny_client, {"messages": [{"role": "user", "content": "Hello?"}]})[0] == 200

    def test_other_paths(self, tiny_client):
        assert float(check_other_paths(tiny_client)["omnizip_tokens_total"]) > 0

    def test_the_openai_package_as_a_client(self, tiny_client, tiny, media):
        expected = generate(tiny, str(media / "clip.mp4"), QUESTION, max_new_tokens=8)
        check_openai_package(tiny_client, expected.text, expected.counts.kept)


JUNK = (
    *(None, True, -1, 0, 1.5, 10**400, "", "x" * 100, "AAAA", [], [[]], {}, {"a": 1}),
    *({"type": "image_url"}, {"role": "tool"}, "data:,", "file:///etc/passwd", "http://127.0.0.1/"),
)


def places(tree, path=()):
    """The paths of all values in a JSON value, from the root on."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items if isinstance(tree, dict | list) else ():
        yield from places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]


def malformed():
    """A thousand requests, most with one to three faults, or truncated, or not JSON."""
    draw = random.Random(0)
    settings = {"omnizip": {"method": "omnizip", "settings": {"keep": 0.45}, "max_frames": 4}}
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    history = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes."}]
    for number in range(1000):
        good = body(sound, video("nowhere.mp4"), text(), **settings, stop=["."], temperature=0.5)
        good["messages"] = [
            history[0],
            *good["messages"],
            history[1],
            *body(text("Why?"))["messages"],
        ]
        good |= {"stream": number % 2 == 0, "stream_options": {"include_usage": True}, "seed": 3}
        good = copy.deepcopy(good)
        for _ in range(draw.randint(1, 3)):
            path = draw.choice(list(places(good)))
            if not path:
                continue
            *parents, last = path
            parent = functools.reduce(lambda tree, key: tree[key], parents, good)
            if draw.random() < 0.2:
                del parent[last]
            else:
                parent[last] = copy.deepcopy(draw.choice(JUNK))
        raw = json.dumps(good).encode()
        if number % 10 == 0:
            cut = draw.randrange(len(raw))
            raw = (
                raw[:cut]
                + draw.choice([b"", b"\xff", b"\x00", b"[" * 2000, b"NaN"])
                + raw[cut + 1 :]
            )
        yield raw


@pytest.mark.slow  # a fuzzing trial
def test_a_thousand_malformed_requests(tiny_client):
    """Each is refused with an error, and later requests are answered."""
    statuses = collections.Counter()
    for raw in malformed():
        answer = tiny_client.post("/v1/chat/completions", content=raw)
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert 400 <= answer.status_code < 500, (raw, error)
            assert error["message"] and error["code"] == answer.status_code
            assert "Traceback" not in error["message"]
    assert statuses[400] > 800
    status, answer = post(tiny_client, body(video(), text()))
    assert status == 200 and answer["choices"][0]["message"]["content"]
