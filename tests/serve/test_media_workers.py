"""Decoding of clips and frames, and worker processes that crash or hang."""

from __future__ import annotations

import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks.bouncing_clip import write_clip
from omnizip_jax import WindowSpec
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.media_workers import DecoderPool, decode_clip, decode_frame
from tests.serve.conftest import InProcessDecoders


def crash():
    os._exit(3)


def hang():
    time.sleep(1000)


def fail():
    raise RuntimeError("a bug of a decoder")


def one():
    return 1


@pytest.fixture(scope="module")
def pool():
    pool = DecoderPool(1, 60)
    yield pool
    pool.close()


@pytest.mark.slow  # processes
def test_workers_may_crash_and_hang(pool):
    assert pool.call(one) == 1
    for task in (crash, fail):
        with pytest.raises(RequestError, match="crashed its decoder"):
            pool.call(task)
        assert pool.call(one) == 1
    short = DecoderPool(1, 0.5)
    with pytest.raises(RequestError, match="was aborted"):
        short.call(hang)
    short.close()


@pytest.mark.parametrize("process", [pytest.param("pool", marks=pytest.mark.slow), "in process"])
def test_frames_and_clips(process, request, tmp_path):
    decoders = request.getfixturevalue("pool") if process == "pool" else InProcessDecoders()
    call = decoders.call
    path = str(write_clip(tmp_path / "clip.mp4", seconds=5, size=(96, 64)))
    spec = WindowSpec(grid_slots=16)
    clip = call(decode_clip, path, "clip", spec, True, True, None, 10.0, 96 * 64)
    assert len(clip.windows.mel_length) == 3 and clip.has_audio and clip.has_video
    with pytest.raises(RequestError, match="clip: lasts"):
        call(decode_clip, path, "clip", spec, True, True, None, 2.0, 96 * 64)
    with pytest.raises(RequestError, match="at most 6143 are accepted"):
        call(decode_clip, path, "clip", spec, True, True, None, 10.0, 96 * 64 - 1)
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(file, "png")
    frame = call(decode_frame, file.getvalue(), 24)
    assert frame.shape == (4, 6, 3) and (frame == 7).all()
    for data, pixels in ((file.getvalue(), 23), (file.getvalue()[:40], 24), (b"GIF89a", 24)):
        with pytest.raises(RequestError):
            call(decode_frame, data, pixels)
