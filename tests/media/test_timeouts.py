"""Sources that never answer: a timeout or Ctrl-C ends the wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from omnizip_jax.media import load_clip, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone, write

SMALL = WindowSpec(grid_slots=12)
WAYS = {
    "load_clip": lambda source, **options: load_clip(source, SMALL, **options),
    "windows": lambda source, **options: list(windows(source, SMALL, **options)),
}


@pytest.fixture(params=["server", "pipe"])
def silent(request, tmp_path):
    """A server that accepts and says nothing; a pipe into which nobody writes."""
    if request.param == "server":
        with socket.create_server(("127.0.0.1", 0)) as listening:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.mp4"
    else:
        os.mkfifo(tmp_path / "a.mp4")
        yield tmp_path / "a.mp4"


@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_ends_the_wait(silent, way):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"a\.mp4: .*nothing came for 0\.[39] s"):
        WAYS[way](silent, timeout=0.3)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("way", WAYS)
def test_so_does_ctrl_c(silent, way):
    main, start = threading.get_ident(), time.monotonic()
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        WAYS[way](silent, timeout=4.0)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_stalls_halfway(tmp_path, way):
    path = write(tmp_path / "a.mkv", grey(range(100)), sound=tone(4.0))
    data = path.read_bytes()

    def serve(listening):
        for _ in range(2):  # it may be asked again
            connection, _ = listening.accept()
            connections.append(connection)
            connection.recv(10_000)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data[: len(data) // 2])

    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.mkv"
        with pytest.raises(ValueError, match=r"a\.mkv: .*nothing came for 0\.[39] s"):
            WAYS[way](url, timeout=0.3)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_with_a_writer_is_read(tmp_path, way):
    path = write(tmp_path / "a.mkv", grey(range(100)), sound=tone(4.0))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    given = WAYS[way](pipe)
    writer.join()
    masks = given.windows.grid_mask if way == "load_clip" else [w.grid_mask for w in given]
    assert len(masks) == 2 and all(mask.all() for mask in masks)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "10"])
@pytest.mark.parametrize("way", WAYS)
def test_invalid_timeouts(way, timeout):
    with pytest.raises(ValueError, match="timeout must be"):
        WAYS[way]("a.mp4", timeout=timeout)


@pytest.mark.parametrize("way", WAYS)
def test_a_local_playlist_without_an_end(tmp_path, way):
    """All of it is read, from its first segment; it ends when nothing more comes."""
    path = write(
        tmp_path / "live.m3u8",
        grey(range(0, 200, 10), height=48, width=64),
        fps=2,
        options={"g": "4", "bf": "0"},
        container_options={"hls_time": "2", "hls_list_size": "0"},
    )
    text = path.read_text()
    assert "#EXT-X-ENDLIST" in text and text.count("#EXTINF") == 5
    path.write_text(text.replace("#EXT-X-ENDLIST\n", ""))
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"live\.m3u8: has no end mark, and is read until nothing"):
        made = WAYS[way](path, timeout=0.3)
    assert time.monotonic() - start < 10
    masks = made.windows.grid_mask if way == "load_clip" else [w.grid_mask for w in made]
    assert all(mask.all() for mask in masks[:5])
    # A stream yields empty windows for as long as it waits.
    assert len(masks) == 5 if way == "load_clip" else not any(mask.any() for mask in masks[5:])
