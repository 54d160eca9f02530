"""Truncated files and downloads are reported."""

from __future__ import annotations

import contextlib
import http.server
import socket
import struct
import threading
import warnings

import av
import numpy as np
import pytest

from omnizip_jax.media import load_clip, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import tone, write

SMALL = WindowSpec(grid_slots=12)
CODECS = {
    "avi": ("mpeg4", "pcm_s16le"),
    "mpg": ("mpeg2video", "mp2"),
    "mp4": ("mpeg4", "aac"),
    "mkv": ("mpeg4", "aac"),
    "flv": ("flv", "aac"),
    "wav": (None, "pcm_s16le"),
    "ogg": (None, "libopus"),
}
WAYS = {
    "load_clip": lambda source: load_clip(source, SMALL),
    "windows": lambda source: list(windows(source, SMALL)),
}


@pytest.fixture(scope="module", params=CODECS)
def whole(request, tmp_path_factory):
    """6 s of noise and a tone."""
    kind = request.param
    path = tmp_path_factory.mktemp("whole") / f"a.{kind}"
    video_codec, audio_codec = CODECS[kind]
    random = np.random.default_rng(0)
    with av.open(str(path), "w", format="mpeg" if kind == "mpg" else None) as container:
        video = video_codec and container.add_stream(video_codec, rate=25)
        audio = container.add_stream(audio_codec, rate=48_000, layout="stereo")
        if video:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = np.round(tone(6.0, 48_000, channels=2) * 32767).astype(np.int16)
        for second in range(6):
            for _ in range(25 if video else 0):
                pixels = random.integers(0, 255, (48, 64, 3)).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            block = sound[:, 48_000 * second : 48_000 * (second + 1)]
            frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1), "s16", "stereo")
            frame.sample_rate, frame.pts = 48_000, 48_000 * second
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode() if stream else [])
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_truncated_file_warns_once(whole, tmp_path, way):
    if whole.suffix == ".mp4":
        return  # its index is at the end
    data = whole.read_bytes()
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(data[: len(data) * 6 // 10 + 1])
    with pytest.warns(UserWarning) as caught:
        WAYS[way](path)
    texts = [str(warning.message) for warning in caught]
    assert sum("cut off?" in text for text in texts) == 1 and len(texts) == len(set(texts))
    assert all(text.startswith(str(path)) for text in texts)
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WAYS[way](whole)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["mkv", "mov"])
def test_a_truncated_file_whose_tracks_state_no_duration(tmp_path, kind, way):
    options = {"movflags": "faststart"} if kind == "mov" else {}
    path = write(tmp_path / f"a.{kind}", sound=tone(6.0), container_options=options)
    data = path.read_bytes().replace(b"DURATION", b"SOMETHIN")
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WAYS[way](path)
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.warns(UserWarning, match="cut off"):
        WAYS[way](path)


@contextlib.contextmanager
def server(data, reset):
    """Announces all of ``data`` and sends 60 %; then it closes, or resets, the connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data[first : max(first, len(data) * 6 // 10)])
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.handle_error = lambda *_: None
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_breaks_off_is_an_error(whole, reset, way):
    name = f"a{whole.suffix}"
    with server(whole.read_bytes(), reset) as url, pytest.raises(ValueError, match=f"/{name}: "):
        WAYS[way](f"{url}/{name}")
