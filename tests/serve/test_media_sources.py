"""Media of requests as files, and downloads from public addresses only."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import threading
import time
import wave
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.media_sources import fetch, is_public, store_medium
from omnizip_jax.serve.protocol import Medium

PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1
255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses(address):
    assert not is_public(address)


def test_public_addresses():
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
        locations = {"/away": "http://127.0.0.2:1/secret", "/round": "/round", "/on": "/file"}
        locations["/odd"] = "http://[::1"
        self.send_response(302 if self.path in locations else 200)
        if self.path in locations:
            self.send_header("Location", locations[self.path])
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


def test_fetch(site):
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
def test_fetch_is_refused(site, path, settings, message):
    began = time.monotonic()
    with pytest.raises(RequestError, match=message):
        fetched(site + path, **settings)
    assert time.monotonic() - began < 8


def test_urls_with_other_characters_are_quoted(site):
    assert fetched(f"{site}/file?name=é ü&x=%20") == b"x" * 1000


@pytest.mark.parametrize(
    "url", [f"http://{'a' * 70}.example/", "http://a.example:99999/", "http://a.example/\ud800"]
)
def test_urls_that_cannot_be_encoded(url):
    with pytest.raises(RequestError, match="expected http:// or https://"):
        fetched(url)


def test_an_invalid_redirect(site):
    with pytest.raises(RequestError, match="expected http:// or https://"):
        fetched(f"{site}/odd")


def test_a_bug_is_not_an_error_of_the_client(site):
    def broken(_):
        return bool(np.zeros((3, 4)) @ np.zeros((3, 4)))

    with pytest.raises(ValueError, match="matmul"):
        fetched(f"{site}/file", allowed=broken)


DATA = bytes(range(256)) * 4
TEXT = base64.b64encode(DATA).decode()
BROKEN = base64.encodebytes(DATA).decode()  # with line breaks


@pytest.mark.parametrize(
    "medium",
    [
        Medium("video_url", f"data:video/mp4;base64,{TEXT}"),
        Medium("video_url", f"DATA:video/mp4;BASE64,{TEXT}"),
        Medium("video_url", f" data:video/mp4;base64,{BROKEN}\n"),
        Medium("audio_url", "data:audio/wav," + quote(DATA)),
        Medium("input_audio", TEXT),
        Medium("input_audio", BROKEN),
        Medium("input_audio", f"data:;base64,{TEXT}"),
        Medium("input_audio", f"Data:audio/wav;base64,{TEXT}"),
    ],
)
def test_data(medium, tmp_path):
    file = store_medium(medium, ServerConfig(), tmp_path)
    assert Path(file.path).read_bytes() == DATA and file.name == medium.kind


def test_audio_without_a_header(tmp_path):
    file = store_medium(Medium("input_audio", TEXT, is_pcm=True), ServerConfig(), tmp_path)
    with wave.open(file.path) as audio:
        parameters = audio.getnchannels(), audio.getsampwidth(), audio.getframerate()
        assert parameters == (1, 2, 16_000) and audio.readframes(10_000) == DATA
    other = store_medium(Medium("input_audio", TEXT), ServerConfig(), tmp_path)
    assert file.digest != other.digest


@pytest.mark.parametrize(
    "url", [f"data:video/jpeg;base64,{TEXT},{TEXT}", f"data:image/png;base64,{TEXT}"]
)
def test_frames_are_told_what_to_send(url, tmp_path):
    with pytest.raises(RequestError, match="as a video file, for example mp4"):
        store_medium(Medium("video_url", url), ServerConfig(), tmp_path)


@pytest.mark.parametrize("name", ["10:15:00.mp4", "a%20b.mp4", "-x.mp4", "a#b?c.mp4", "é 🎥.mp4"])
def test_names_of_files(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(DATA)
    config = ServerConfig(media_folder=tmp_path)
    for url in (name, str(path), path.as_uri(), path.as_uri().replace("file:", "FILE:")):
        assert store_medium(Medium("video_url", url), config, tmp_path).path == str(path)


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "http://", "http://me:secret@127.0.0.1/", "http://[::1", "gopher:x"]
)
def test_invalid_urls(url):
    with pytest.raises(RequestError):
        fetched(url)


def test_a_host_name_is_resolved_once(site, monkeypatch):
    found = iter(["127.0.0.1", "127.0.0.2"])
    port = int(site.rpartition(":")[2])

    def resolve(*_, **__):
        return [(2, 1, 6, "", (next(found), port))]

    monkeypatch.setattr("omnizip_jax.serve.media_sources.socket.getaddrinfo", resolve)
    # The connection is made to an address: a second resolution would give 127.0.0.2.
    monkeypatch.setattr(
        "omnizip_jax.serve.media_sources.socket.create_connection",
        lambda address, timeout: dial(address),
    )
    dialled = []

    def dial(address):
        dialled.append(address)
        raise ConnectionRefusedError("enough")

    with pytest.raises(RequestError, match="enough"):
        fetched("http://name.example/file")
    assert dialled == [("127.0.0.1", 80)]
