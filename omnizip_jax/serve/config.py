"""Configuration of a server: its limits, address, key and folders."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from omnizip_jax.serve.auth import is_loopback

MiB = 2**20
_MIN_KEY_LENGTH = 16  # characters
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on requests and memory; a request beyond one is refused with a reason.

    Args:
        sessions: concurrent live sessions; each holds one cache of ``capacity`` slots.
        answers: concurrent answers, queued ones included; each holds a copy of a cache.
        answer_bytes: total size of these copies.
        windows: queued windows of one session; beyond it the oldest is dropped.
        capacity: slots of a session's cache.
        text_slots: slots of it reserved for a question and its answer.
        clip_cache_bytes: size of the cached contexts of clips.
        upload: bytes of a request body, and of one medium.
        bodies: bytes of all request bodies that are being received or read.
        media: clips in a request.
        clip_bytes: size of all clips that are being decoded or wait for their prefill.
        seconds: duration of a clip.
        pixels: size of a frame.
        frames_per_second: rate of live frames; frames beyond it are dropped.
        messages, characters: messages of a conversation, and their total text.
        tokens: of an answer; a request for more gets as many.
        idle: seconds without a message after which a session ends.
        decoding: seconds to fetch or decode one medium.
        waiting: seconds until the next step of an answer, or for a request body.

    Raises:
        ValueError: a bound that is not positive.
    """

    sessions: int = 16
    answers: int = 32
    answer_bytes: int = 8192 * MiB
    windows: int = 4
    capacity: int = 8192
    text_slots: int = 1024
    clip_cache_bytes: int = 2048 * MiB
    upload: int = 64 * MiB
    bodies: int = 256 * MiB
    media: int = 64
    clip_bytes: int = 4096 * MiB
    seconds: float = 600.0
    pixels: int = 4096 * 2304
    frames_per_second: float = 10.0
    messages: int = 64
    characters: int = 32_768
    tokens: int = 1024
    idle: float = 300.0
    decoding: float = 60.0
    waiting: float = 120.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Settings of ``omnizip serve``.

    Args:
        host, port: address to listen at.
        key_file: file with the API key.
        no_key: accept other machines without a key.
        media_folder: requests may name files below it; None: no files.
        allow_remote: requests may name http and https URLs.
        session_folder: where sessions of disconnected clients are stored; None: nowhere.
        trusted_hosts: host names under which a reverse proxy serves this server.

    Raises:
        ValueError: other machines could connect and there is no key, a folder is missing, or a
            trusted host is not a name.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    no_key: bool = False
    media_folder: Path | None = None
    allow_remote: bool = False
    session_folder: Path | None = None
    trusted_hosts: tuple[str, ...] = ()
    limits: Limits = Limits()

    def __post_init__(self):
        if not (is_loopback(self.host) or self.key_file or self.no_key):
            raise ValueError(
                f"--host {self.host}: other machines could connect; give --api-key-file FILE, or "
                "--no-api-key to accept every client"
            )
        if self.media_folder is not None and not self.media_folder.is_dir():
            raise ValueError(f"--allow-media {self.media_folder}: not a folder")
        for name in self.trusted_hosts:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(
                    "--trusted-hosts takes names such as video.example.com, without scheme and "
                    f"port, got {name!r}"
                )

    @property
    def key(self) -> str | None:
        """The API key, without surrounding white space.

        Raises:
            ValueError: it is too short, or not ASCII.
        """
        if self.key_file is None:
            return None
        key = self.key_file.read_text().strip()
        if len(key) < _MIN_KEY_LENGTH or not key.isascii():
            raise ValueError(
                f"--api-key-file {self.key_file}: the key must have at least {_MIN_KEY_LENGTH} "
                "characters, all ASCII"
            )
        return key
