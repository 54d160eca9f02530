"""``omnizip serve`` as a process: bad arguments, and SIGTERM."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request

import pytest
from websockets.sync.client import connect

from omnizip_jax.cli.main import main
from tests.serve.process import served

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
def test_bad_arguments_are_refused_before_the_checkpoint_is_loaded(
    arguments, message, tmp_path, capsys
):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert main(["serve", "--checkpoint", "nowhere", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def process(checkpoint, tmp_path):
    """A server in its own process, and its URL."""
    settings = ("--checkpoint", str(checkpoint), "--capacity", "2048", "--method", "all")
    with served(tmp_path, *settings, "--save-sessions", str(tmp_path / "sessions")) as server:
        yield server


def test_sigterm_finishes_running_answers_and_saves_sessions(process, tmp_path):
    server, url = process
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

    with connect(f"{url}/v1/video/chat/stream".replace("http", "ws")) as camera:
        camera.send(json.dumps({"type": "session.config"}))
        created = json.loads(camera.recv(timeout=WAIT))
        listening = threading.Thread(target=listen)
        listening.start()
        assert begun.wait(WAIT)
        server.send_signal(signal.SIGTERM)
        listening.join(WAIT)
        assert lines[-2] == b"data: [DONE]\n" and b'"usage"' in lines[-4]
        assert server.wait(WAIT) == 0
    assert [path.name for path in (tmp_path / "sessions").iterdir()] == [created["session_id"]]
