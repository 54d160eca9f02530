"""Access control: the API key, loopback host names, and browser origins."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from omnizip_jax.serve.errors import RequestError

_UNPROTECTED = ("/health", "/ready")
PAGE = "/page/"  # files of the web page, which hold no secret and ask for the key

# A browser cannot set headers of a WebSocket, but it can offer subprotocols: the one that the
# server accepts, and one with the key in base64url without padding after this prefix.
PROTOCOL = "omnizip"
KEY_PROTOCOL = "omnizip.key."

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


class AuthMiddleware:
    """ASGI middleware that refuses requests without permission.

    With a key, all requests but those for health and for the page need ``Authorization: Bearer
    KEY``; a WebSocket may offer it as a subprotocol, see ``KEY_PROTOCOL``. With ``local`` the host
    name must be a loopback name, or DNS rebinding could reach the server from other sites. The
    origin of a browser's request must always be the server itself.

    Args:
        app: the ASGI app.
        key: the API key, or None.
        local: accept loopback host names only.
    """

    def __init__(self, app: App, key: str | None = None, local: bool = True):
        self._app, self._local = app, local
        self._key = None if key is None else _digest(key)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in _UNPROTECTED:
            try:
                self._check(Headers(scope=scope), scope)
            except RequestError as error:
                if scope["type"] == "websocket":
                    await receive()
                    await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
                else:
                    await JSONResponse(error.body, error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, scope: Scope) -> None:
        host = headers.get("host", "")
        if self._local and not is_loopback(_hostname(host)):
            raise RequestError("this server answers to 127.0.0.1 and localhost only", 403)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError("pages of other sites may not use this server", 403)
        if self._key is None or scope["path"] == "/" or scope["path"].startswith(PAGE):
            return
        key = _bearer_key(headers) or _subprotocol_key(scope.get("subprotocols", ()))
        # Digests have one length, so the comparison takes constant time for every key.
        if key is None or not hmac.compare_digest(_digest(key), self._key):
            raise RequestError("give the server's key as Authorization: Bearer KEY", 401)


def is_loopback(host: str) -> bool:
    """Whether a name or address is localhost or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer_key(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _subprotocol_key(protocols: Iterable[str]) -> str | None:
    for protocol in protocols:
        if protocol.startswith(KEY_PROTOCOL):
            key = protocol.removeprefix(KEY_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode()
            except (binascii.Error, ValueError):
                return None
    return None


def _hostname(host: str) -> str:
    """The header ``Host`` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
