"""``omnizip serve`` in a process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

WAIT = 300.0  # s, for compilers on busy machines


@contextlib.contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``omnizip serve`` until it is ready; yields the process and its URL.

    Args:
        folder: for its cache and its stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "omnizip_jax", "serve", "--port", str(port), *arguments]
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, env=os.environ | environment, stderr=stderr, text=True)
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}", folder / "stderr")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[str], url: str, stderr: Path) -> None:
    ends = time.monotonic() + WAIT
    while True:
        assert time.monotonic() < ends and process.poll() is None, stderr.read_text()
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/ready", timeout=10).close()
            return
        time.sleep(0.5)
