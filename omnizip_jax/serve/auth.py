"""Access control: the API key, loopback host names, and browser origins."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from omnizip_jax.serve.errors import RequestError

_UNPROTECTED = ("/health", "/ready")
_PORTS = {"http": 80, "https": 443}
PAGE = "/page/"  # files of the web page, which hold no secret and ask for the key

# A browser cannot set headers of a WebSocket, but it can offer subprotocols: the one that the
# server accepts, and one with the key in base64url without padding after this prefix.
PROTOCOL = "omnizip"
KEY_PROTOCOL = "omnizip.key."


class AuthMiddleware:
    """ASGI middleware that refuses requests without permission.

    With a key, all requests but those for health and for the page need ``Authorization: Bearer
    KEY``; a WebSocket may offer it as a subprotocol, see ``KEY_PROTOCOL``. With ``local`` the host
    name of requests without a key must be a loopback name or trusted, or DNS rebinding could reach
    the server from other sites. The origin of a browser's request must always be the server itself
    or a page of a trusted host.

    Args:
        app: the ASGI app.
        key: the API key, or None.
        local: accept loopback and trusted host names only, except in requests with the key.
        trusted_hosts: names under which a reverse proxy serves the app.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        local: bool = True,
        trusted_hosts: Iterable[str] = (),
    ):
        self._app, self._local = app, local
        self._keys = [] if key is None else [_digest(f"bearer {key}"), _digest(_protocol_of(key))]
        self._trusted = frozenset(name.lower() for name in trusted_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        name = _address(host)[0]
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        offered = [f"{kind.lower()} {bearer.strip()}", *scope.get("subprotocols", ())]
        # Digests have one length, so a comparison takes constant time for every key.
        has_key = any(
            hmac.compare_digest(_digest(each), key) for each in offered for key in self._keys
        )
        if self._local and not (has_key or is_loopback(name) or name in self._trusted):
            raise RequestError(
                "this server answers to 127.0.0.1 and localhost only: start it with "
                "--trusted-hosts NAME to serve it as NAME behind a proxy",
                403,
            )
        origin = headers.get("origin")
        if origin is not None:
            scheme, _, address = origin.partition("://")
            page = _address(address, scheme)
            is_own = bool(page[0]) and page == _address(host, scheme)
            if not is_own and page[0] not in self._trusted:
                raise RequestError(
                    f"pages of {origin[:80]} may not use this server: behind a proxy, start it "
                    "with --trusted-hosts and the name in that address",
                    403,
                )
        is_page = scope["path"] == "/" or scope["path"].startswith(PAGE)
        if self._keys and not (has_key or is_page):
            raise RequestError("give the server's key as Authorization: Bearer KEY", 401)


def is_loopback(host: str) -> bool:
    """Whether a name or address is localhost or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _protocol_of(key: str) -> str:
    return KEY_PROTOCOL + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _address(host: str, scheme: str = "") -> tuple[str, int | None]:
    """The name in lower case and the port of a header ``Host``; the scheme's port by default."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port or _PORTS.get(scheme.lower())
    except ValueError:
        return "", None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
