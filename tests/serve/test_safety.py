"""Keys, names, addresses, and decoders that break."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks.bouncing_clip import write_clip
from omnizip_jax import WindowSpec
from omnizip_jax.serve.auth import KEY_PROTOCOL, PROTOCOL, Guard, is_loopback
from omnizip_jax.serve.cache import Kept
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.fetch import fetch, is_public
from omnizip_jax.serve.limits import Limits
from omnizip_jax.serve.server import Settings
from omnizip_jax.serve.worker import Workers, decode_clip, decode_picture

KEY = "a key of some length"


def guarded(base="http://127.0.0.1:8000", **settings):
    return TestClient(Guard(PlainTextResponse("in"), **settings), base_url=base)


def test_a_key_is_needed_where_there_is_one():
    client = guarded("http://elsewhere.example", key=KEY, local=False)
    for given in (None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer é"):
        headers = {} if given is None else {"Authorization": given.encode()}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).text == "in"
    assert client.get("/health").text == "in"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/video/chat/stream"):
        pass


async def spoken(scope, receive, send):
    """Accepts a socket, and says what was offered."""
    socket = WebSocket(scope, receive, send)
    await socket.accept(PROTOCOL if PROTOCOL in scope["subprotocols"] else None)
    await socket.send_json(scope["subprotocols"])


def offered(key):
    return KEY_PROTOCOL + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_a_socket_of_a_browser_offers_the_key_as_a_protocol():
    client = TestClient(Guard(spoken, key=KEY), base_url="http://127.0.0.1:8000")
    path = "ws://127.0.0.1:8000/v1/video/chat/stream"
    with client.websocket_connect(path, subprotocols=[PROTOCOL, offered(KEY)]) as socket:
        assert socket.accepted_subprotocol == PROTOCOL  # the key is not said again
        socket.receive_json()
    wrong = [offered(KEY + "x"), offered(""), KEY_PROTOCOL + "%", KEY_PROTOCOL + "_w", KEY_PROTOCOL]
    for protocols in ([], [PROTOCOL], *([PROTOCOL, each] for each in wrong)):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(path, subprotocols=protocols),
        ):
            pass


def test_the_page_needs_no_key_and_opens_nothing_else():
    client = guarded(key=KEY)
    assert client.get("/").text == client.get("/page/main.js").text == "in"
    for path in ("/v1/models", "/page", "/pages", "/metrics", "/v1/page/"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "rebound.example:8000"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_stay_out(headers, status):
    assert guarded().get("/v1/models", headers=headers).status_code == status


def test_names_of_this_machine():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1
255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_addresses_that_are_public():
    assert (
        is_public("8.8.8.8") and is_public("2606:4700:4700::1111") and is_public("64:ff9b::808:808")
    )


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b"H")
                    time.sleep(0.05)
            return
        where = {"/away": "http://127.0.0.2:1/secret", "/round": "/round", "/on": "/file"}
        self.send_response(302 if self.path in where else 200)
        if self.path in where:
            self.send_header("Location", where[self.path])
        body = b"x" * 1000
        self.send_header("Content-Length", str(2000 if self.path == "/short" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetched(url, size=1000, seconds=20.0, allowed=lambda address: address == "127.0.0.1"):
    file = io.BytesIO()
    fetch(url, file, size, seconds, allowed)
    return file.getvalue()


def test_what_is_fetched(site):
    assert fetched(f"{site}/file") == fetched(f"{site}/on") == b"x" * 1000


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("/file", {"allowed": is_public}, "not a public address"),
        ("/away", {}, "not a public address"),
        ("/round", {}, "redirects"),
        ("/file", {"size": 999}, "larger than 999"),
        ("/short", {"size": 3000}, "early"),
        ("/slow", {"seconds": 0.5}, "cannot be read"),
    ],
)
def test_what_is_not_fetched(site, path, settings, message):
    began = time.monotonic()
    with pytest.raises(Failure, match=message):
        fetched(site + path, **settings)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "http://", "http://me:secret@127.0.0.1/", "http://[::1", "gopher:x"]
)
def test_urls_that_are_none(url):
    with pytest.raises(Failure):
        fetched(url)


def test_a_name_is_resolved_once(site, monkeypatch):
    found = iter(["127.0.0.1", "127.0.0.2"])
    port = int(site.rpartition(":")[2])

    def resolve(*_, **__):
        return [(2, 1, 6, "", (next(found), port))]

    monkeypatch.setattr("omnizip_jax.serve.fetch.socket.getaddrinfo", resolve)
    # The library connects by address, so a second answer would be 127.0.0.2 and fail.
    monkeypatch.setattr(
        "omnizip_jax.serve.fetch.socket.create_connection", lambda address, timeout: dial(address)
    )
    asked = []

    def dial(address):
        asked.append(address)
        raise ConnectionRefusedError("enough")

    with pytest.raises(Failure, match="enough"):
        fetched("http://name.example/file")
    assert asked == [("127.0.0.1", 80)]


def crash():
    os._exit(3)


def hang():
    time.sleep(1000)


def one():
    return 1


@pytest.fixture(scope="module")
def workers():
    workers = Workers(1, 60)
    yield workers
    workers.close()


def test_decoders_may_crash_and_hang(workers):
    assert workers.call(one) == 1
    with pytest.raises(Failure, match="broke its decoder"):
        workers.call(crash)
    assert workers.call(one) == 1
    impatient = Workers(1, 0.5)
    with pytest.raises(Failure, match="was given up"):
        impatient.call(hang)
    impatient.close()


def test_pictures_and_clips(workers, tmp_path):
    path = str(write_clip(tmp_path / "clip.mp4", seconds=5, size=(96, 64)))
    spec = WindowSpec(grid_slots=16)
    clip = workers.call(decode_clip, path, "clip", spec, True, True, None, 10.0, 96 * 64)
    assert len(clip.windows.mel_length) == 3 and clip.has_audio and clip.has_video
    with pytest.raises(Failure, match="clip: lasts"):
        workers.call(decode_clip, path, "clip", spec, True, True, None, 2.0, 96 * 64)
    with pytest.raises(Failure, match="at most 6143 are taken"):
        workers.call(decode_clip, path, "clip", spec, True, True, None, 10.0, 96 * 64 - 1)
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(file, "png")
    frame = workers.call(decode_picture, file.getvalue(), 24)
    assert frame.shape == (4, 6, 3) and (frame == 7).all()
    for data, pixels in ((file.getvalue(), 23), (file.getvalue()[:40], 24), (b"GIF89a", 24)):
        with pytest.raises(Failure):
            workers.call(decode_picture, data, pixels)


def test_what_was_used_last_stays():
    kept = Kept(10)
    kept.put("a", 1, 4)
    kept.put("b", 2, 4)
    assert kept.get("a") == 1
    kept.put("c", 3, 4)
    assert kept.get("b") is None and kept.get("a") == 1 and kept.get("c") == 3
    kept.put("d", 4, 11)
    assert kept.get("d") is None and (kept.bytes, len(kept)) == (8, 2)


def test_where_the_server_listens(tmp_path):
    file = tmp_path / "key"
    file.write_text(f" {KEY}\n")
    assert Settings().key is None and Settings(host="0.0.0.0", key_file=file).key == KEY
    assert Settings(host="0.0.0.0", open=True).key is None
    with pytest.raises(ValueError, match="--api-key-file"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValueError, match="--allow-media"):
        Settings(media=file)
    file.write_text("short")
    with pytest.raises(ValueError, match="at least 16"):
        _ = Settings(key_file=file).key
    with pytest.raises(ValueError, match="sessions must be a positive"):
        Limits(sessions=0)
