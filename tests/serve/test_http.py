"""Chat completions against the real app: answers, errors, and media from where they may come."""

from __future__ import annotations

import base64
import collections
import contextlib
import copy
import functools
import json
import random

import pytest
from starlette.testclient import TestClient

import omnizip_jax.serve.http as http
from benchmarks.bouncing_clip import write_clip
from omnizip_jax import OmniZipConfig, converse, generate
from omnizip_jax.compression import AllTokens
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.http import Server
from omnizip_jax.serve.sources import Sources
from omnizip_jax.serve.worker import Workers
from tests.serve.conftest import LIMITS, WAIT

pytestmark = pytest.mark.slow  # many programs, sockets and processes

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """The folder that may be read, and what lies beside it."""
    folder = tmp_path_factory.mktemp("media") / "allowed"
    folder.mkdir()
    write_clip(folder / "clip.mp4", seconds=5, size=(96, 64))
    (folder.parent / "secret.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "way_out.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:5,\nclip.mp4\n#EXT-X-ENDLIST\n")
    (folder / "words.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def server(tiny, media):
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warm=False)
    workers = Workers(1, WAIT)
    yield Server(engine, "tiny", Sources(LIMITS, media), workers)
    engine.close(WAIT)
    workers.close()


@pytest.fixture(scope="module")
def client(server):
    with TestClient(server.app(), base_url="http://127.0.0.1:8000") as client:
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


def events(client, request):
    with client.stream("POST", "/v1/chat/completions", json=request | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_equals_the_librarys(client, server, tiny, media):
    expected = generate(tiny, str(media / "clip.mp4"), QUESTION, max_new_tokens=8)
    data = base64.b64encode((media / "clip.mp4").read_bytes()).decode()
    read = server.engine.metrics.clips_read._value
    before = read.get()
    for url in ("clip.mp4", f"file://{media}/clip.mp4", f"data:video/mp4;base64,{data}"):
        status, answer = post(client, body(video(url), text()))
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


def test_pieces_are_the_same_answer(client):
    request = body(video(), text(), stream_options={"include_usage": True})
    whole, pieces = post(client, request)[1], events(client, request)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *_, end, usage = pieces
    said = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces[:-1])
    assert said == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_a_remembered_clip_is_not_decoded(client, server, monkeypatch):
    first = post(client, body(video(), text()))[1]

    def decode(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(server.workers, "call", decode)
    again = post(client, body(video(), text()))[1]
    assert again["choices"] == first["choices"] and again["usage"] == first["usage"]


def test_method_settings_texts_and_stop(client, tiny, media):
    clip = media / "clip.mp4"
    parts = ["Before.", {"video": str(clip)}, QUESTION]
    expected = converse(tiny, parts, compression=AllTokens(), max_new_tokens=8, system="Be brief.")
    request = body(text("Before."), video(), text(), omnizip={"method": "all"}, unknown=[1])
    request["messages"].insert(0, {"role": "system", "content": "Be brief."})
    answer = post(client, request)[1]
    said = answer["choices"][0]["message"]["content"]
    assert said == expected.text
    assert answer["usage"]["omnizip"]["media_kept"] == expected.counts.media
    middle = said[len(said) // 2 :][:2]
    cut = post(client, request | {"stop": [middle]})[1]["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["message"]["content"] == said[: said.index(middle)]
    kept = {"method": "omnizip", "settings": {"keep": 0.35}}
    usage = post(client, body(video(), text(), omnizip=kept))[1]["usage"]["omnizip"]
    assert usage["media_kept"] == round(0.35 * usage["media"])


def test_a_question_before_its_clip_comes_behind_it(client):
    before, after = (post(client, body(*c))[1] for c in ((text(), video()), (video(), text())))
    assert before["choices"] == after["choices"]


def test_several_turns_and_sampling(client):
    request = body(video(), text(), temperature=1.0, seed=-3, max_completion_tokens=6)
    first, again = post(client, request)[1], post(client, request)[1]
    assert first["choices"] == again["choices"] and first["usage"]["completion_tokens"] <= 6
    request["messages"] += [
        {"role": "assistant", "content": "It rained."},
        {"role": "user", "content": "And then?"},
    ]
    second = post(client, request)[1]
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    assert second["usage"]["omnizip"] == first["usage"]["omnizip"]
    assert post(client, {"messages": [{"role": "user", "content": "Hello?"}]})[0] == 200


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
        (body(text(), model="gpt"), 404, "no model 'gpt'"),
        (body(text(), n=2), 400, "n must be 1"),
        (body(text(), max_tokens=65), 400, "from 1 to 64"),
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
def test_bad_requests_say_what_is_wrong(client, media, request_, status, message):
    answer = client.post("/v1/chat/completions", content=json.dumps(request_))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert str(media) not in error["message"]  # where things lie is nobody's business


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"messages": NaN}'])
def test_what_is_no_json(client, raw):
    answer = client.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_what_is_too_large(client, monkeypatch):
    monkeypatch.setattr(http, "_WORDS", -int(LIMITS.upload * 4 / 3) + 100)
    answer = client.post("/v1/chat/completions", content=b" " * 101)
    assert answer.status_code == 413


def test_what_stands_around(client):
    assert client.get("/health").text == "alive" and client.get("/ready").status_code == 200
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny"]
    facts = models[0]["omnizip"]
    assert facts["streaming"] == ["omnizip", "all", "random"]
    assert facts["default"]["method"] == "omnizip" and facts["default"]["settings"]["keep"] is None
    assert facts["capacity"] == LIMITS.capacity and facts["window_seconds"] == 2
    assert OmniZipConfig(**facts["default"]["settings"]) == OmniZipConfig()
    post(client, body(text()))
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["omnizip_tokens_total"]) > 0 and values["omnizip_sessions"] == "0.0"
    assert client.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get("/v1/chat/completions").status_code == 405


def test_a_full_server_says_so(client, server, monkeypatch):
    def refuse(*_, **__):
        raise http.Failure("full", 503)

    monkeypatch.setattr(server.engine, "submit", refuse)
    for stream in (False, True):
        answer = client.post("/v1/chat/completions", json=body(text(), stream=stream))
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["message"] == "full"


def test_the_openai_package(client, tiny, media):
    openai = pytest.importorskip("openai")
    ours = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="none", http_client=client, max_retries=0
    )
    expected = generate(tiny, str(media / "clip.mp4"), QUESTION, max_new_tokens=8)
    asked = {"model": "tiny", "messages": body(video(), text())["messages"], "max_tokens": 8}
    answer = ours.chat.completions.create(**asked, extra_body={"omnizip": {"method": "omnizip"}})
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.omnizip["media_kept"] == expected.counts.kept
    pieces = ours.chat.completions.create(**asked, stream=True)
    said = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(said) == expected.text
    with contextlib.suppress(openai.NotFoundError):
        ours.chat.completions.create(**asked | {"model": "other"})
        raise AssertionError("another model answered")
    assert [model.id for model in ours.models.list()] == ["tiny"]


JUNK = (
    *(None, True, -1, 0, 1.5, 10**400, "", "x" * 100, "AAAA", [], [[]], {}, {"a": 1}),
    *({"type": "image_url"}, {"role": "tool"}, "data:,", "file:///etc/passwd", "http://127.0.0.1/"),
)


def places(tree, path=()):
    """Every place in a JSON value, the whole first."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items if isinstance(tree, dict | list) else ():
        yield from places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]


def malformed():
    """A thousand requests, most of them wrong in one to three places, or cut off, or no JSON."""
    draw = random.Random(0)
    settings = {"omnizip": {"method": "omnizip", "settings": {"keep": 0.45}, "max_frames": 4}}
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes."}]
    for number in range(1000):
        good = body(sound, video("nowhere.mp4"), text(), **settings, stop=["."], temperature=0.5)
        good["messages"] = [turns[0], *good["messages"], turns[1], *body(text("Why?"))["messages"]]
        good |= {"stream": number % 2 == 0, "stream_options": {"include_usage": True}, "seed": 3}
        good = copy.deepcopy(good)
        for _ in range(draw.randint(1, 3)):
            path = draw.choice(list(places(good)))
            if not path:
                continue
            *way, last = path
            parent = functools.reduce(lambda tree, key: tree[key], way, good)
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


def test_a_thousand_malformed_requests(client):
    """Each has a clear error, and nobody else notices."""
    statuses = collections.Counter()
    for raw in malformed():
        answer = client.post("/v1/chat/completions", content=raw)
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert 400 <= answer.status_code < 500, (raw, error)
            assert error["message"] and error["code"] == answer.status_code
            assert "Traceback" not in error["message"]
    assert statuses[400] > 800
    status, answer = post(client, body(video(), text()))
    assert status == 200 and answer["choices"][0]["message"]["content"]
