"""Media from elsewhere: only from public addresses, whatever names and redirects say.

A name is resolved once, its addresses are checked, and the connection goes to the very address
that was checked.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO
from urllib.parse import urljoin, urlsplit

from omnizip_jax.serve.failure import Failure

_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
_BLOCK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet: not private, loopback, link-local or special."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def fetch(
    url: str,
    file: IO[bytes],
    size: int,
    seconds: float,
    allowed: Callable[[str], bool] = is_public,
) -> None:
    """Write what a URL gives to a file.

    Args:
        size: bytes, at most.
        seconds: for all of it, redirects included.
        allowed: whether an address may be connected to.

    Raises:
        Failure: it is refused, too large, too slow, or fails.
    """
    end = time.monotonic() + seconds
    for _ in range(_REDIRECTS + 1):
        try:
            with _connected(url, end, allowed) as connection:
                following = _read(connection, url, file, size, end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise Failure(f"{_shown(url)}: cannot be read: {reason}") from error
        if following is None:
            return
        url = following
    raise Failure(f"{_shown(url)}: more than {_REDIRECTS} redirects")


@contextlib.contextmanager
def _connected(
    url: str, end: float, allowed: Callable[[str], bool]
) -> Iterator[http.client.HTTPConnection]:
    """A connection that hangs up at the end, whatever the other side does."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise Failure(f"{_shown(url)}: expected http:// or https:// and a host, without a user")
    port = parts.port or _PORTS[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(map(allowed, addresses)):
        raise Failure(f"{_shown(url)}: not a public address", 403)
    stream = socket.create_connection((addresses[0], port), _left(end))
    timer = threading.Timer(_left(end), lambda: _hang_up(stream))
    timer.daemon = True
    timer.start()
    try:
        if parts.scheme == "https":
            stream = ssl.create_default_context().wrap_socket(
                stream, server_hostname=parts.hostname, do_handshake_on_connect=False
            )
            stream.do_handshake()
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = stream
        yield connection
    finally:
        timer.cancel()
        stream.close()


def _hang_up(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _read(
    connection: http.client.HTTPConnection, url: str, file: IO[bytes], size: int, end: float
) -> str | None:
    """The body into the file; or where it is instead."""
    parts = urlsplit(url)
    host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Host": host, "Accept-Encoding": "identity"})
    response = connection.getresponse()
    where = response.getheader("Location")
    if response.status in (301, 302, 303, 307, 308) and where:
        return urljoin(url, where)
    if response.status != 200:
        raise Failure(f"{_shown(url)}: answered {response.status}")
    total = 0
    while block := response.read1(_BLOCK):
        total += len(block)
        if total > size:
            raise Failure(f"{_shown(url)}: larger than {size} bytes", 413)
        file.write(block)
    _left(end)  # hung up, it looks like an end
    if response.length:
        raise Failure(f"{_shown(url)}: ended {response.length} bytes early")
    return None


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return left


def _shown(url: str) -> str:
    """A URL without its query, which may hold secrets."""
    return url.partition("?")[0][:200]
