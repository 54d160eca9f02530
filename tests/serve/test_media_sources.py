"""Downloads from public addresses only."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
import time

import pytest

from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.media_sources import fetch, is_public

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
