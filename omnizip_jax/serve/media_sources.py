"""Media of requests as files: data URLs, files of an allowed folder, public http and https URLs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import ipaddress
import socket
import ssl
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

from omnizip_jax.serve.config import ServerConfig
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.protocol import NO_IMAGES, Medium, read_base64

_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
_READ_SIZE = 1 << 16
# ``quote`` leaves these as they are: characters with a meaning in URLs, and what is quoted already.
_URL_CHARACTERS = "/%:@!$&'()*+,;=?~"
_IMAGE_DATA = ("data:image/", "data:video/jpeg", "data:video/png")  # one frame, or a list
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """A medium as a file, and its name for messages."""

    path: str
    name: str
    digest: str  # of the content; of a file in the allowed folder: of path, time and size


def store_medium(medium: Medium, config: ServerConfig, scratch: Path) -> MediaFile:
    """Write a medium to ``scratch`` unless it is a file already; blocks.

    Raises:
        RequestError: it is not allowed, cannot be read, or is too large.
    """
    url, limits = medium.url.strip(), config.limits
    scheme = url.partition(":")[0].lower()
    inline = scheme == "data" or medium.kind == "input_audio"
    if not inline and scheme not in ("http", "https"):
        if "://" in url and scheme != "file":
            raise RequestError(
                f"{medium.kind} must begin with data:, http://, https:// or file://, got "
                f"{scheme[:20]}:"
            )
        path = url.partition(":")[2].removeprefix("//").removeprefix("localhost")
        name = unquote(path) if scheme == "file" else medium.url
        return _local_file(name, config.media_folder)
    if not (inline or config.allow_remote):
        raise RequestError(
            "this server fetches no URLs: send the clip as a data: URL, or start the server with "
            "--allow-remote",
            403,
        )
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
        if not inline:
            fetch(url, file, limits.upload, limits.decoding)
        else:
            data = _data_url(url) if scheme == "data" else read_base64(url, "input_audio.data")
            if len(data) > limits.upload:
                message = f"{medium.kind}: {len(data)} bytes, at most {limits.upload} are accepted"
                raise RequestError(message, 413)
            if medium.is_pcm:
                with wave.open(file, "wb") as wav:
                    wav.setparams((1, 2, 16_000, 0, "NONE", ""))  # as ``audio.chunk`` of live video
                    wav.writeframes(data)
            else:
                file.write(data)
    with open(file.name, "rb") as stored:
        digest = hashlib.file_digest(stored, "sha256").hexdigest()
    return MediaFile(file.name, medium.kind if inline else _without_query(url), digest)


def _local_file(name: str, folder: Path | None) -> MediaFile:
    if folder is None:
        raise RequestError(
            "this server reads no files: send the clip as a data: URL, or start the server with "
            "--allow-media",
            403,
        )
    root = folder.resolve()
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file():
            status = path.stat()
            version = f"{path}\n{status.st_mtime_ns}\n{status.st_size}"
            return MediaFile(str(path), name[:200], hashlib.sha256(version.encode()).hexdigest())
    # The same message for a missing file: it discloses nothing about other folders.
    raise RequestError(f"{name[:200]}: no file below the folder given as --allow-media", 403)


def _data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    head = head.lower()
    if not comma:
        raise RequestError("a data: URL is data:TYPE;base64,DATA; this one has no comma")
    is_base64 = head.endswith(";base64")
    if head.startswith(_IMAGE_DATA) or (is_base64 and "," in data):
        raise RequestError(f"{head[:40]} holds no video or audio file: {NO_IMAGES}")
    return read_base64(unquote(data), "url") if is_base64 else unquote_to_bytes(data)


def is_public(address: str) -> bool:
    """Whether an address is public: not private, loopback, link-local or reserved."""
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
    """Download a URL to a file.

    A host name is resolved once per redirect, and the connection goes to the address that was
    checked.

    Args:
        size: maximum number of bytes.
        seconds: for the whole download, redirects included.
        allowed: whether an address may be connected to.

    Raises:
        RequestError: it is not allowed, too large, too slow, or fails.
    """
    end = time.monotonic() + seconds
    url = _joined("", url)
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            with _connect(url, end, allowed) as connection:
                location = _download(connection, url, file, size, end)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise RequestError(f"{_without_query(url)}: cannot be read: {reason}") from error
        if location is None:
            return
        url = _joined(url, location)
    raise RequestError(f"{_without_query(url)}: more than {_MAX_REDIRECTS} redirects")


def _joined(base: str, url: str) -> str:
    """A checked URL, which may be relative to another one."""
    try:
        url = urljoin(base, url)
        parts = urlsplit(url)
        valid = parts.scheme in _PORTS and parts.hostname and parts.username is None
        _ = parts.port, url.encode(), parts.netloc.encode("idna")
        (parts.hostname or "").encode("idna")
    except ValueError:
        valid = False
    if not valid:
        message = "expected http:// or https:// and a host, without a user"
        raise RequestError(f"{_without_query(url)}: {message}")
    return url


@contextlib.contextmanager
def _connect(
    url: str, end: float, allowed: Callable[[str], bool]
) -> Iterator[http.client.HTTPConnection]:
    """A connection that is shut down at the time ``end``."""
    parts, name = urlsplit(url), _without_query(url)
    assert parts.hostname is not None  # checked by ``_joined``
    port = parts.port or _PORTS[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(map(allowed, addresses)):
        raise RequestError(f"{name}: not a public address", 403)
    stream = socket.create_connection((addresses[0], port), _remaining(end))
    timer = threading.Timer(_remaining(end), lambda: _shut_down(stream))
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


def _shut_down(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _download(
    connection: http.client.HTTPConnection, url: str, file: IO[bytes], size: int, end: float
) -> str | None:
    """Write the body to the file, or return the location of a redirect."""
    parts, name = urlsplit(url), _without_query(url)
    host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path = quote(path, safe=_URL_CHARACTERS)
    connection.request("GET", path, headers={"Host": host, "Accept-Encoding": "identity"})
    response = connection.getresponse()
    location = response.getheader("Location")
    if response.status in (301, 302, 303, 307, 308) and location:
        return location
    if response.status != 200:
        raise RequestError(f"{name}: answered {response.status}")
    total = 0
    while block := response.read1(_READ_SIZE):
        total += len(block)
        if total > size:
            raise RequestError(f"{name}: larger than {size} bytes", 413)
        file.write(block)
    _remaining(end)  # a connection that was shut down looks like the end of the body
    if response.length:
        raise RequestError(f"{name}: ended {response.length} bytes early")
    return None


def _remaining(end: float) -> float:
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("it takes too long")
    return remaining


def _without_query(url: str) -> str:
    """A URL for messages, without its query, which may hold secrets."""
    return url.partition("?")[0][:200]
