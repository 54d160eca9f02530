"""Who may talk to the server: those with the key; without one, this machine's own programs."""

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

from omnizip_jax.serve.failure import Failure

_OPEN = ("/health", "/ready")  # for those who watch over the server
PAGE = "/page/"  # what the page at / is made of; it holds no secret, and asks for the key

# A browser's page cannot give a header to a socket, but it can name protocols: the one that the
# server speaks, and after this prefix the key in base64url without padding.
PROTOCOL = "omnizip"
KEY_PROTOCOL = "omnizip.key."

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


class Guard:
    """Stands before an app.

    With a key, every request but those for health and for the page needs it as ``Authorization:
    Bearer KEY``; a socket may offer it as a protocol instead, see ``KEY_PROTOCOL``.
    Without one, the address that a request was sent to must be this machine's, or a page from
    elsewhere could reach the server under a name of its own. In both cases a browser's page must
    come from the server itself.

    Args:
        app: ASGI.
        key: None needs none.
        local: only this machine's names are answered to.
    """

    def __init__(self, app: App, key: str | None = None, local: bool = True):
        self._app, self._local = app, local
        self._key = None if key is None else _digest(key)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in _OPEN:
            try:
                self._check(Headers(scope=scope), scope)
            except Failure as failure:
                if scope["type"] == "websocket":
                    await receive()
                    await send({"type": "websocket.close", "code": 1008, "reason": str(failure)})
                else:
                    await JSONResponse(failure.body, failure.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, scope: Scope) -> None:
        host = headers.get("host", "")
        if self._local and not is_loopback(_hostname(host)):
            raise Failure("this server answers to 127.0.0.1 and localhost only", 403)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Failure("pages of other sites may not use this server", 403)
        if self._key is None or scope["path"] == "/" or scope["path"].startswith(PAGE):
            return
        given = _bearer(headers) or _offered(scope.get("subprotocols", ()))
        # Digests are of one length, so the time tells nothing of the key's.
        if given is None or not hmac.compare_digest(_digest(given), self._key):
            raise Failure("give the server's key as Authorization: Bearer KEY", 401)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(headers: Headers) -> str | None:
    """The key of a header."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else None


def _offered(protocols: Iterable[str]) -> str | None:
    """The key among the protocols that a socket offers."""
    for protocol in protocols:
        if protocol.startswith(KEY_PROTOCOL):
            key = protocol.removeprefix(KEY_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode()
            except (binascii.Error, ValueError):
                return None
    return None


def _hostname(host: str) -> str:
    """Of a header ``Host``, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
