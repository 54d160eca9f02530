"""The server as a process: from a loaded model until SIGTERM."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import uvicorn

from omnizip_jax.compression import Method
from omnizip_jax.models.params import Params
from omnizip_jax.serve.auth import is_loopback
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.http import Server
from omnizip_jax.serve.limits import Limits
from omnizip_jax.serve.session_store import Shelf
from omnizip_jax.serve.sources import Sources
from omnizip_jax.serve.worker import Workers

_WORKERS = 2  # processes that decode media
_GRACE = 60  # s from SIGTERM until what still runs is cut off
_KEY = 16  # characters of a key, at least


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``omnizip serve`` is told.

    Args:
        host, port: where to listen.
        key_file: holds the key that clients must give.
        open: listen beyond this machine without a key.
        media: files below this folder may be named; None: none.
        remote: media may be fetched from the internet.
        shelf: sessions whose clients are gone are saved in this folder; None lets go of them.
        limits: how much is taken on.

    Raises:
        ValueError: another machine could connect, and there is no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    open: bool = False
    media: Path | None = None
    remote: bool = False
    shelf: Path | None = None
    limits: Limits = Limits()  # noqa: RUF009 (frozen)

    def __post_init__(self):
        if not (is_loopback(self.host) or self.key_file or self.open):
            raise ValueError(
                f"--host {self.host}: other machines could connect; give --api-key-file FILE, or "
                "--no-api-key if everybody there may use the server"
            )
        if self.media is not None and not self.media.is_dir():
            raise ValueError(f"--allow-media {self.media}: not a folder")

    @property
    def key(self) -> str | None:
        """The key, without the white space around it.

        Raises:
            ValueError: it is too short.
        """
        if self.key_file is None:
            return None
        key = self.key_file.read_text().strip()
        if len(key) < _KEY or not key.isascii():
            raise ValueError(
                f"--api-key-file {self.key_file}: the key must have at least {_KEY} characters, "
                "all of them ASCII"
            )
        return key


def serve(params: Params, name: str, method: Method, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; what runs then is finished, within ``_GRACE`` seconds.

    Args:
        name: of the model, as clients are told.
        method: of requests that name none.

    Raises:
        ValueError: a key that is too short.
    """
    shelf = None if settings.shelf is None else Shelf(settings.shelf)
    engine = Engine(params, method, settings.limits, shelf=shelf)
    workers = Workers(_WORKERS, settings.limits.decoding)
    sources = Sources(settings.limits, settings.media, settings.remote)
    local = is_loopback(settings.host)
    app = Server(engine, name, sources, workers, settings.key, local).app()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        server_header=False,
        ws_max_size=2 * settings.limits.upload,
        limit_concurrency=8 * (settings.limits.sessions + settings.limits.answers),
        timeout_graceful_shutdown=_GRACE,
    )
    # uvicorn raises the signal once more when it has ended in order.
    signal.signal(signal.SIGTERM, lambda *_: None)
    engine.start()
    print(f"[http://{settings.host}:{settings.port}: {name}]", file=sys.stderr, flush=True)
    try:
        uvicorn.Server(config).run()
    finally:
        engine.close(_GRACE)
        workers.close()
