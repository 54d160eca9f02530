"""Many concurrent clients of a real server: every answer equals that of a single stream.

The clients ask, stall, send invalid messages, disconnect, and resume their sessions or not.
OMNIZIP_LOAD_SECONDS is the duration, ten minutes for a full trial.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import io
import json
import os
import random
import re
import threading
import time
import urllib.request

import numpy as np
import psutil
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from experiments.accuracy_questions import clip_and_questions
from omnizip_jax import OmniZipConfig, PushSource, ask, feed, init_stream, windows
from omnizip_jax.testbed.synthetic_clips import FPS, SAMPLE_RATE
from tests.serve.process import served

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("OMNIZIP_LOAD_SECONDS", "60"))
CLIENTS, STREAMS, CAPACITY, TEXT_SLOTS = 16, 4, 2048, 1024
PACE = 0.5  # s between frames, in real time
WAIT = 120.0  # s, timeout
WINDOW = 4  # frames
QUERY_AT = (6, 11, 16)  # frames sent
INVALID = (
    "{",
    "[]",
    "null",
    '{"type": "what"}',
    '{"type": "audio.chunk", "data": "!"}',
    b"\x00\xff",
)


@functools.cache
def stream(number):
    """Frames, chunks of half a second of audio, and questions about them."""
    clip, questions = clip_and_questions(number, "test", "easy")
    frames = clip.frames[:: round(FPS * PACE)]
    pcm = (np.clip(clip.waveform, -1, 1) * 32767).astype("<i2")
    pieces = np.split(pcm[: len(frames) * int(SAMPLE_RATE * PACE)], len(frames))
    return frames, pieces, [question.text for question in questions]


def messages(number, first, last):
    """Pairs of messages with a frame and an audio chunk."""
    frames, pieces, _ = stream(number)
    for at in range(first, last):
        png = io.BytesIO()
        Image.fromarray(frames[at]).save(png, "png")
        sent = {"pts_ms": 500 * (at - first), "data": base64.b64encode(png.getvalue()).decode()}
        sound = base64.b64encode(pieces[at].tobytes()).decode()
        yield {"type": "video.frame", **sent}, {"type": "audio.chunk", "data": sound}


class Reference:
    """Answers of the library to the same streams."""

    def __init__(self, params):
        self._params, self._lock = params, threading.Lock()
        self._answers = {}

    def answer(self, number, cut, seen, question):
        """For a client that disconnected at frame ``cut`` of the stream (0: never)."""
        key = (number, cut, seen, question)
        with self._lock:
            if key not in self._answers:
                state = init_stream(
                    self._params, OmniZipConfig(), capacity=CAPACITY, text_slots=TEXT_SLOTS
                )
                read = self._windows(number, 0, cut + 1)[:1] if cut else []
                for window in [*read, *self._windows(number, cut, seen)]:
                    state = feed(self._params, state, window)
                reply, _ = ask(self._params, state, question, max_new_tokens=8)
                self._answers[key] = reply.text
            return self._answers[key]

    def _windows(self, number, first, last):
        frames, pieces, _ = stream(number)
        source = PushSource(SAMPLE_RATE)
        source.push_frames(frames[first:last], np.arange(last - first) * PACE)
        source.push_audio(np.concatenate(pieces[first:last]) / np.float32(32768))
        source.close()
        return list(windows(source, self._params.config.spec))


class Client:
    """Runs one session after the other until the time is over."""

    def __init__(self, url, reference, seed):
        self._url, self._reference = f"{url}/v1/video/chat/stream".replace("http", "ws"), reference
        self._draw = random.Random(seed)
        self.counts = collections.Counter()
        self.failure = None

    def run(self, ends):
        try:
            while time.monotonic() < ends:
                self._run_session()
        except BaseException as failure:
            self.failure = failure

    def _run_session(self):
        draw = self._draw
        number, seen = draw.randrange(STREAMS), draw.choice(QUERY_AT)
        cut = WINDOW if draw.random() < 0.3 else 0
        self.counts["sessions"] += 1
        with self._connect() as socket:
            name = self._begin(socket)
            if not cut:
                return self._finish(socket, number, 0, seen)
            self._send(socket, number, 0, cut + 1)
            self._until(socket, "window.read")
            socket.socket.close()  # without a close frame
        with self._resume(name) as socket:
            self._finish(socket, number, cut, seen)

    def _finish(self, socket, number, first, seen):
        draw = self._draw
        self._send(socket, number, first, seen)
        for question in draw.sample(stream(number)[2], 2):
            socket.send(json.dumps({"type": "video.query", "text": question}))
            if draw.random() < 0.1:
                socket.socket.close()
                self.counts["disconnected"] += 1
                return
            text = self._until(socket, "response.text.done")["text"]
            expected = self._reference.answer(number, first, seen, question)
            assert text == expected, (number, first, seen, question, text, expected)
            self.counts["answers"] += 1
        if draw.random() < 0.7:
            socket.send(json.dumps({"type": "video.done"}))
            self._until(socket, "session.done")

    def _send(self, socket, number, first, last):
        draw = self._draw
        for pair in messages(number, first, last):
            for message in pair:
                socket.send(json.dumps(message))
            if draw.random() < 0.05:
                socket.send(draw.choice(INVALID))
                assert self._until(socket, "error")["code"] == 400
                self.counts["invalid"] += 1
            if draw.random() < 0.02:
                time.sleep(5)
                self.counts["stalled"] += 1
            time.sleep(PACE)

    def _connect(self):
        return connect(self._url, max_size=2**24, open_timeout=WAIT, close_timeout=1)

    def _begin(self, socket, **extra):
        socket.send(json.dumps({"type": "session.config", "max_tokens": 8, "omnizip": extra}))
        return self._until(socket, "session.created")["session_id"]

    @contextlib.contextmanager
    def _resume(self, name):
        """Connect to the session once the server has saved it."""
        ends = time.monotonic() + WAIT
        while time.monotonic() < ends:
            with self._connect() as socket:
                try:
                    self._begin(socket, resume=name)
                except (AssertionError, ConnectionClosed):
                    time.sleep(0.5)
                    continue
                self.counts["resumed"] += 1
                yield socket
                return
        raise TimeoutError(f"{name} was never saved")

    def _until(self, socket, kind):
        while True:
            message = json.loads(socket.recv(timeout=WAIT))
            assert message["type"] != "window.skipped", message
            if message["type"] == kind:
                return message
            assert message["type"] != "error", message


def read_metrics(url):
    """Values of the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        found = re.findall(r"^omnizip_(\w+(?:{[^}]*})?) (\S+)$", answer.read().decode(), re.M)
    return {name: float(value) for name, value in found}


def test_many_clients(small, tmp_path):
    arguments = ("--checkpoint", "small", "--dtype", "float32", "--capacity", str(CAPACITY))
    sessions = ("--save-sessions", str(tmp_path / "sessions"), "--max-sessions", "24")
    reference, memory = Reference(small), []
    with served(tmp_path, *arguments, *sessions) as (process, url):
        clients = [Client(url, reference, seed) for seed in range(CLIENTS)]
        ends = time.monotonic() + SECONDS
        threads = [threading.Thread(target=each.run, args=(ends,)) for each in clients]
        for thread in threads:
            thread.start()
            time.sleep(PACE / CLIENTS)
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(5.0, SECONDS / 10))
            memory.append(psutil.Process(process.pid).memory_info().rss)
        for each in clients:
            if each.failure is not None:
                raise each.failure
        total = sum((each.counts for each in clients), collections.Counter())
        ends = time.monotonic() + WAIT
        while (now := read_metrics(url))["sessions"] or now["answers"]:
            assert time.monotonic() < ends
            time.sleep(0.2)
        print(f"\n{dict(total)}; {now['windows_total']:.0f} windows, {max(memory) / 2**20:.0f} MiB")
        for name in ("window_wait", "first_token", "step"):
            print(name, {k: int(v) for k, v in now.items() if k.startswith(f"{name}_seconds_b")})
        print(f"MiB: {[rss // 2**20 for rss in memory]}")
        assert now["answer_bytes"] == now["session_bytes"] == now["windows_waiting"] == 0
        assert now["windows_skipped_total"] == 0
        assert total["answers"] > CLIENTS and total["resumed"] and total["invalid"]
        half = len(memory) // 2
        assert max(memory[half:]) < 1.05 * max(memory[: half + 1]), memory
        assert process.poll() is None
