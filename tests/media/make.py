"""Small files for the tests."""

from __future__ import annotations

import contextlib
import functools
import http.server
import struct
import threading
from fractions import Fraction

import av
import numpy as np


def grey(levels, height=48, width=64):
    """One flat frame per level."""
    frames = np.empty((len(levels), height, width, 3), np.uint8)
    frames[:] = np.asarray(levels, np.uint8)[:, None, None, None]
    return frames


def tone(seconds, rate=16_000, hertz=1000.0, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    return np.tile(0.25 * np.sin(2 * np.pi * hertz * time), (channels, 1)).astype(np.float32)


def write(
    path,
    frames=None,
    times=None,
    fps=25,
    sound=None,
    rate=16_000,
    layout="mono",
    starts=(0.0,),
    audio_codec="pcm_s16le",
    video_codec="libx264",
    options=None,
    container_options=None,
):
    """Write frames, at ``times`` in seconds or at ``fps``, and audio, from each of ``starts``."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        if frames is not None:
            if times is None:
                times = np.arange(len(frames)) / fps
            video = container.add_stream(video_codec, rate=fps)
            video.height, video.width = frames.shape[1:3]
            if video_codec == "libx264":
                video.pix_fmt = "yuv444p"
                video.options = {"crf": "8", "preset": "veryfast"} | (options or {})
                video.codec_context.time_base = Fraction(1, 1000)
            else:
                video.pix_fmt, video.bit_rate = "yuv420p", 2_000_000
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
        if frames is not None:
            for time, pixels in zip(times, frames, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if sound is not None:
            for start in starts:
                for at in range(0, sound.shape[1], 1024):
                    frame = _audio_frame(sound[:, at : at + 1024], audio_codec, layout)
                    frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                    frame.pts = round(start * rate) + at
                    container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def _audio_frame(samples, codec, layout):
    if codec.startswith("pcm_s16"):
        integers = np.round(samples * 32767).astype(np.int16)
        return av.AudioFrame.from_ndarray(integers.T.reshape(1, -1), "s16", layout)
    return av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)


def orient(path, a, b, c, d):
    """Set the display matrix of an mp4's first track: (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(value * (1 << 16)) for value in (a, b, c, d))
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + len(matrix)] = matrix
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def served(folder):
    """The URL of a folder, by a server that does not seek."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
