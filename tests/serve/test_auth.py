"""Access control: key, host names, origins, and the configuration of a server."""

from __future__ import annotations

import base64

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from omnizip_jax.serve.auth import KEY_PROTOCOL, PROTOCOL, AuthMiddleware, is_loopback
from omnizip_jax.serve.config import Limits, ServerConfig

KEY = "a key of some length"


def client_of(base="http://127.0.0.1:8000", **settings):
    return TestClient(AuthMiddleware(PlainTextResponse("allowed"), **settings), base_url=base)


def test_a_configured_key_is_required():
    client = client_of("http://elsewhere.example", key=KEY, local=False)
    for header in (None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer é"):
        headers = {} if header is None else {"Authorization": header.encode()}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).text == "allowed"
    assert client.get("/health").text == "allowed"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/video/chat/stream"):
        pass


async def echo_subprotocols(scope, receive, send):
    """Accepts a socket and sends the subprotocols that it offered."""
    socket = WebSocket(scope, receive, send)
    await socket.accept(PROTOCOL if PROTOCOL in scope["subprotocols"] else None)
    await socket.send_json(scope["subprotocols"])


def offered(key):
    return KEY_PROTOCOL + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_a_browser_offers_the_key_as_a_subprotocol():
    client = TestClient(
        AuthMiddleware(echo_subprotocols, key=KEY), base_url="http://127.0.0.1:8000"
    )
    path = "ws://127.0.0.1:8000/v1/video/chat/stream"
    with client.websocket_connect(path, subprotocols=[PROTOCOL, offered(KEY)]) as socket:
        assert socket.accepted_subprotocol == PROTOCOL  # the key is not repeated
        socket.receive_json()
    wrong = [offered(KEY + "x"), offered(""), KEY_PROTOCOL + "%", KEY_PROTOCOL + "_w", KEY_PROTOCOL]
    for protocols in ([], [PROTOCOL], *([PROTOCOL, each] for each in wrong)):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(path, subprotocols=protocols),
        ):
            pass


def test_only_the_page_needs_no_key():
    client = client_of(key=KEY)
    assert client.get("/").text == client.get("/page/main.js").text == "allowed"
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
def test_hosts_and_origins(headers, status):
    assert client_of().get("/v1/models", headers=headers).status_code == status


PUBLIC = "video.example.com"


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (PUBLIC, f"https://{PUBLIC}"),  # proxy_set_header Host $host
        ("127.0.0.1:8000", f"https://{PUBLIC}"),  # nginx's own default
        (PUBLIC, None),
        (PUBLIC, f"https://{PUBLIC}:8443"),
        (f"{PUBLIC}:443", f"https://{PUBLIC}"),
        ("Video.Example.com", f"https://{PUBLIC}"),
        (f"{PUBLIC}:8443", f"https://{PUBLIC}:8443"),
    ],
)
def test_trusted_hosts_of_a_proxy(host, origin, key):
    headers = {"Host": host, "X-Forwarded-Proto": "https", "X-Forwarded-Host": PUBLIC}
    headers |= {} if origin is None else {"Origin": origin}
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}

    def status(**settings):
        return client_of(key=key, **settings).get("/v1/models", headers=headers).status_code

    assert status(trusted_hosts=["VIDEO.example.com"]) == 200
    if key is None:
        assert status() == status(trusted_hosts=["example.com", "com"]) == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("rebound.example", None),
        (PUBLIC, "https://evil.example"),
        (PUBLIC, f"https://{PUBLIC}.evil.example"),
        (PUBLIC, "null"),
        ("127.0.0.1:8000", "null"),
    ],
)
def test_hosts_and_origins_beside_the_trusted_ones(host, origin):
    headers = {"Host": host, "X-Forwarded-Host": PUBLIC}
    headers |= {} if origin is None else {"Origin": origin}
    answer = client_of(trusted_hosts=[PUBLIC]).get("/v1/models", headers=headers)
    assert answer.status_code == 403 and "--trusted-hosts" in answer.json()["error"]["message"]


def test_requests_with_the_key_may_have_any_host_name():
    """Pages of other sites, which DNS rebinding could let in, have no key."""
    headers = {"Host": PUBLIC, "Authorization": f"Bearer {KEY}"}
    client = client_of(key=KEY)
    assert client.get("/v1/models", headers=headers).status_code == 200
    for path in ("/v1/models", "/"):
        assert client.get(path, headers={"Host": PUBLIC}).status_code == 403
    for origin in ("https://evil.example", "null"):
        answer = client.get("/v1/models", headers=headers | {"Origin": origin})
        assert answer.status_code == 403
    headers |= {"Host": "[", "Origin": "null"}  # neither has a name
    assert client.get("/v1/models", headers=headers).status_code == 403


def test_loopback_names():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


def test_server_configuration(tmp_path):
    file = tmp_path / "key"
    file.write_text(f" {KEY}\n")
    assert ServerConfig().key is None and ServerConfig(host="0.0.0.0", key_file=file).key == KEY
    assert ServerConfig(host="0.0.0.0", no_key=True).key is None
    with pytest.raises(ValueError, match="--api-key-file"):
        ServerConfig(host="0.0.0.0")
    with pytest.raises(ValueError, match="--allow-media"):
        ServerConfig(media_folder=file)
    for name in ("https://video.example.com", "video.example.com:443", "*", ""):
        with pytest.raises(ValueError, match="--trusted-hosts takes names"):
            ServerConfig(trusted_hosts=(name,))
    file.write_text("short")
    with pytest.raises(ValueError, match="at least 16"):
        _ = ServerConfig(key_file=file).key
    with pytest.raises(ValueError, match="sessions must be a positive"):
        Limits(sessions=0)
