"""Where media of requests come from: the request itself, files that are allowed, the internet."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import tempfile
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from omnizip_jax.serve.chat import Medium
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.fetch import fetch
from omnizip_jax.serve.limits import Limits


@dataclasses.dataclass(frozen=True)
class Stored:
    """A medium as a file.

    Attributes:
        path: of the file.
        name: in messages.
        digest: equal for equal content; of a file of the user's own, for the same version of it.
    """

    path: str
    name: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Sources:
    """What may be read.

    Args:
        limits: bytes of a medium, seconds to fetch it.
        folder: files below it may be named; None: none.
        remote: addresses of the internet may be named.
    """

    limits: Limits
    folder: Path | None = None
    remote: bool = False

    def store(self, medium: Medium, scratch: Path) -> Stored:
        """A medium as a file, in ``scratch`` unless it is one already. Takes its time.

        Raises:
            Failure: it may not be read, cannot be read, or is too large.
        """
        url = medium.url
        if medium.kind == "input_audio":
            return self._keep(_base64(url), medium.kind, scratch)
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        if scheme == "data":
            return self._keep(_data_url(url), medium.kind, scratch)
        if scheme in ("http", "https"):
            return self._fetch(url, scratch)
        if scheme in ("", "file"):
            path = unquote(urlsplit(url).path) if scheme else url
            return self._file(path)
        raise Failure(
            f"{medium.kind} must begin with data:, http://, https:// or file://, got {scheme[:20]}:"
        )

    def _keep(self, data: bytes, name: str, scratch: Path) -> Stored:
        if len(data) > self.limits.upload:
            raise Failure(f"{name}: {len(data)} bytes, at most {self.limits.upload} are taken", 413)
        with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
            file.write(data)
        return Stored(file.name, name, hashlib.sha256(data).hexdigest())

    def _fetch(self, url: str, scratch: Path) -> Stored:
        if not self.remote:
            raise Failure(
                "this server reads nothing from the internet: send the clip itself as a data: URL, "
                "or start the server with --allow-remote",
                403,
            )
        with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as file:
            fetch(url, file, self.limits.upload, self.limits.decoding)
        with open(file.name, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        return Stored(file.name, url.partition("?")[0][:200], digest)

    def _file(self, name: str) -> Stored:
        if self.folder is None:
            raise Failure(
                "this server reads no files: send the clip itself as a data: URL, or start the "
                "server with --allow-media",
                403,
            )
        root = self.folder.resolve()
        try:
            path = (root / name).resolve()
            allowed = path.is_relative_to(root) and path.is_file()
            status = path.stat() if allowed else None
        except (OSError, ValueError, RuntimeError):
            status = None
        if status is None:
            # The same words for a file that is not there: nobody learns what lies elsewhere.
            raise Failure(f"{name[:200]}: no file below the folder that --allow-media names", 403)
        version = f"{path}\n{status.st_mtime_ns}\n{status.st_size}"
        return Stored(str(path), name[:200], hashlib.sha256(version.encode()).hexdigest())


def _data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma:
        raise Failure("a data: URL is data:TYPE;base64,DATA; there is no comma in this one")
    return _base64(unquote(data)) if head.endswith(";base64") else unquote_to_bytes(data)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Failure(f"the data are not base64: {error}") from error
