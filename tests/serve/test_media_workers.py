"""Decoding of clips and frames, and worker processes that crash or hang."""

from __future__ import annotations

import asyncio
import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks.bouncing_clip import write_clip
from omnizip_jax import WindowSpec
from omnizip_jax.serve import media_workers
from omnizip_jax.serve.errors import RequestError, as_request_error
from omnizip_jax.serve.media_workers import DecoderPool, clip_seconds, decode_clip, decode_frame
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
def test_workers_may_crash_and_hang(pool, caplog):
    assert asyncio.run(pool.call(one)) == 1
    with pytest.raises(RequestError, match="crashed its decoder"):
        asyncio.run(pool.call(crash))
    assert asyncio.run(pool.call(one)) == 1
    with pytest.raises(RuntimeError, match="a bug of a decoder") as error:  # not of the medium
        asyncio.run(pool.call(fail))
    assert as_request_error(error.value).status == 500 and "fail" in caplog.text
    assert asyncio.run(pool.call(one)) == 1
    short = DecoderPool(1, 0.5)
    with pytest.raises(RequestError, match="was aborted"):
        asyncio.run(short.call(hang))
    short.close()


@pytest.mark.slow  # processes
def test_a_worker_ends_with_its_caller(pool):
    async def leave():
        task = asyncio.create_task(pool.call(hang))
        await asyncio.sleep(0.5)
        task.cancel()
        return await asyncio.wait_for(pool.call(one), 30)

    assert asyncio.run(leave()) == 1


@pytest.mark.parametrize("process", [pytest.param("pool", marks=pytest.mark.slow), "in process"])
def test_frames_and_clips(process, request, tmp_path):
    decoders = request.getfixturevalue("pool") if process == "pool" else InProcessDecoders()

    def call(*arguments):
        return asyncio.run(decoders.call(*arguments))

    path = str(write_clip(tmp_path / "clip.mp4", seconds=5, size=(96, 64)))
    spec = WindowSpec(grid_slots=16)
    clip = call(decode_clip, path, "clip", spec, True, True, None, 5, 96 * 64)
    assert len(clip.windows.mel_length) == 3 and clip.has_audio and clip.has_video
    with pytest.raises(RequestError, match="clip: lasts"):
        call(decode_clip, path, "clip", spec, True, True, None, 1, 96 * 64)
    with pytest.raises(RequestError, match="at most 6143 are accepted"):
        call(decode_clip, path, "clip", spec, True, True, None, 5, 96 * 64 - 1)
    assert call(clip_seconds, path, "clip", True, True, 10.0, 96 * 64) == pytest.approx(5, abs=0.1)
    with pytest.raises(RequestError, match="at most 6143 are accepted"):
        call(clip_seconds, path, "clip", True, True, 10.0, 96 * 64 - 1)
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(file, "png")
    frame = call(decode_frame, file.getvalue(), 24)
    assert frame.shape == (4, 6, 3) and (frame == 7).all()
    for data, pixels in ((file.getvalue(), 23), (file.getvalue()[:40], 24), (b"GIF89a", 24)):
        with pytest.raises(RequestError):
            call(decode_frame, data, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_upright_by_their_exif_orientation(kind, orientation):
    picture = np.full((48, 64, 3), 128, np.uint8)
    picture[:24, :32], picture[24:, :32] = (200, 40, 40), (40, 200, 40)
    y, x = np.mgrid[:48, :64]
    place = {  # row and column of each stored pixel on display, by the EXIF standard
        1: (y, x),
        2: (y, 63 - x),
        3: (47 - y, 63 - x),
        4: (47 - y, x),
        5: (x, y),
        6: (x, 47 - y),
        7: (63 - x, 47 - y),
        8: (63 - x, y),
    }[orientation]
    expected = np.zeros((48, 64, 3) if orientation < 5 else (64, 48, 3), np.uint8)
    expected[place] = picture
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(file, kind, exif=exif, quality=95, subsampling=0)
    frame = decode_frame(file.getvalue(), 10_000)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_frames_are_shown_over_white(mode):
    picture, file = np.zeros((8, 8, 4), np.uint8), io.BytesIO()
    picture[:4, :, 3] = 255  # black above; below black that is hidden
    Image.fromarray(picture).convert(mode).save(file, "PNG")
    frame = decode_frame(file.getvalue(), 100)
    assert frame.shape == (8, 8, 3) and not frame[:4].any() and (frame[4:] == 255).all()


def test_a_bug_in_decoding_is_not_an_error_of_the_medium(tmp_path, monkeypatch):
    path = str(write_clip(tmp_path / "clip.mp4", seconds=1, size=(96, 64)))
    monkeypatch.setattr(media_workers, "load_clip", lambda *_, **__: np.zeros(3).reshape(2, 2))
    with pytest.raises(ValueError, match="cannot reshape") as error:
        decode_clip(path, "clip", WindowSpec(grid_slots=16), True, True, None, 5, 96 * 64)
    assert not isinstance(error.value, RequestError)
