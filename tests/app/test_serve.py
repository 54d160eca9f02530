"""``omnizip serve`` as a process: what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from omnizip_jax.app.cli import main
from omnizip_jax.checkpoint.convert import convert

pytestmark = pytest.mark.slow  # many programs, sockets and processes

WAIT = 300.0  # s, for compilers on busy machines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--allow-media", "{folder}/nowhere"], "--allow-media"),
        (["--api-key-file", "{folder}/nowhere"], "nowhere"),
        (["--method", "magic"], "method magic: unknown"),
    ],
)
def test_what_is_refused_before_the_checkpoint_is_loaded(arguments, message, tmp_path, capsys):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert main(["serve", "--checkpoint", "nowhere", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def process(released_folder, tmp_path):
    """A server in a process of its own, and where it is."""
    convert(released_folder, tmp_path / "tiny", "float32")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "omnizip_jax", "serve", "--checkpoint", str(tmp_path / "tiny")]
    settings = ["--port", str(port), "--capacity", "2048", "--method", "all"]
    quiet = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([*command, *settings], env=quiet, stderr=subprocess.PIPE, text=True)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_sigterm_finishes_what_runs(process):
    server, url = process
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=10) as answer:
                assert answer.read() == b"ready"
                break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    body = {
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), method="POST"
    )
    lines, begun = [], threading.Event()

    def listen():
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            for line in answer:
                lines.append(line)
                begun.set()

    listening = threading.Thread(target=listen)
    listening.start()
    assert begun.wait(WAIT)
    server.send_signal(signal.SIGTERM)
    listening.join(WAIT)
    assert lines[-2] == b"data: [DONE]\n" and b'"usage"' in lines[-4]
    assert server.wait(WAIT) == 0, server.stderr.read()
