"""Pushed media arrive in any order and from any number of threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from omnizip_jax.media import PushSource, load_clip, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone

SMALL = WindowSpec(grid_slots=4)
SECONDS = 60


def filled(given):
    return [int(w.grid_mask.sum()) for w in given], [int(w.mel_length) for w in given]


@pytest.mark.parametrize("order", ["video first", "audio first"])
@pytest.mark.parametrize("close", ["before", "while it is read"])
def test_one_stream_after_the_other_loses_nothing(order, close):
    frames = grey(np.arange(SECONDS * 2) % 250, height=28, width=28)
    sound = tone(SECONDS)[0]
    source = PushSource()
    pushes = [
        lambda: source.push_frames(frames, np.arange(len(frames)) / 2),
        lambda: source.push_audio(sound),
    ]
    if order == "audio first":
        pushes.reverse()

    def push():
        pushes[0]()
        time.sleep(0.2)  # what came first has long been looked at
        pushes[1]()
        source.close()

    pusher = threading.Thread(target=push)
    pusher.start()
    if close == "before":
        pusher.join()
    with windows(source, SMALL, timeout=2.0) as stream:
        given = list(stream)
    pusher.join()
    assert filled(given) == ([2] * 30, [200] * 30)
    assert (stream.incomplete, stream.late_frames, stream.late_audio) == (0, 0, 0.0)
    clip = load_clip((frames, 2.0, sound, 16_000), SMALL).windows
    np.testing.assert_array_equal(np.stack([w.patches for w in given]), clip.patches)
    np.testing.assert_allclose(np.stack([w.mel for w in given]), clip.mel, atol=0.01)


def test_a_closed_source_is_not_waited_for():
    source = PushSource()
    source.push_frames(grey([50] * 40, height=28, width=28), np.arange(40) / 2)
    source.close()
    start = time.monotonic()
    given = list(windows(source, SMALL))  # no audio was pushed: the timeout would be 10 s
    assert filled(given) == ([2] * 10, [0] * 10) and time.monotonic() - start < 5


def test_threads_that_push_at_once_lose_nothing():
    source, start = PushSource(sample_rate=48_000), threading.Barrier(4)
    block = np.full(480, 0.5, np.float32)

    def push():
        start.wait()
        for _ in range(500):
            source.push_audio(block)

    pushers = [threading.Thread(target=push) for _ in range(4)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    source.close()
    with windows(source, SMALL, use_video=False) as stream:
        assert filled(list(stream))[1] == [200] * 10  # 4 x 5 s
    assert stream.late_audio == 0


@pytest.mark.parametrize("when_slow", ["wait", "skip"])
def test_a_missing_microphone_costs_its_timeout_once_and_stores_nothing(when_slow):
    """A camera that never closes; its owner asks for windows, or lets them be skipped."""
    source, stop = PushSource(), threading.Event()
    picture = grey([50], height=28, width=28)

    def push():
        for at in range(100_000):
            source.push_frames(picture, at / 10)
            if stop.wait(0.002):
                break
        source.close()

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        with windows(source, SMALL, timeout=0.3, queue=2, when_slow=when_slow) as stream:
            if when_slow == "skip":
                deadline = time.monotonic() + 20
                while stream.skipped < 5 and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert stream.skipped >= 5
            start = time.monotonic()
            given = [next(stream) for _ in range(5)]
            assert time.monotonic() - start < 10
            assert filled(given) == ([2] * 5, [0] * 5) and stream.incomplete >= 5
            stop.set()
            pusher.join()
    finally:
        stop.set()
