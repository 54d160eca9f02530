"""Long and sparse clips: their memory, and their refusal."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest

from omnizip_jax.media import load_clip
from omnizip_jax.media.container import MediaFile
from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone, write

SPEC = WindowSpec()
MIB = 2**20


@contextlib.contextmanager
def peak_below(size):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("known", [True, False])
def test_four_frames_in_three_hours_are_refused_before_they_fill_the_memory(
    tmp_path, monkeypatch, known
):
    path = write(tmp_path / "a.mkv", grey([10, 20, 30, 40]), times=[0, 3_590, 7_180, 10_770])
    if known:
        monkeypatch.setattr(MediaFile, "decode", lambda *_: pytest.fail("decoded"))
    else:
        monkeypatch.setattr(MediaFile, "duration", None)
    with (
        peak_below(20 * MIB),
        pytest.raises(ValueError, match=r"a\.mkv: .*too long for 600 windows of 2 s: shorten"),
    ):
        load_clip(path, SPEC, max_windows=600)


@pytest.mark.parametrize("known", [True, False])
def test_the_bound_counts_windows(tmp_path, monkeypatch, known):
    path = write(tmp_path / "a.mkv", grey([50] * 150), sound=tone(6.02))
    if not known:
        monkeypatch.setattr(MediaFile, "duration", None)
    assert len(load_clip(path, max_windows=3).windows.mel) == 3
    with pytest.raises(ValueError, match="too long for 2 windows"):
        load_clip(path, max_windows=2)


def test_arrays_are_refused_too():
    frames = grey([50] * 4)
    with peak_below(20 * MIB), pytest.raises(ValueError, match=r"arrays: .*too long"):
        load_clip((frames, 1e-3, None, 0), max_windows=600)
    with pytest.raises(ValueError, match="fps must be a positive number, at least 1/3600"):
        load_clip((frames, 1e-6, None, 0))


def test_windows_without_video_allocate_no_pixels():
    with peak_below(250 * MIB):  # of which the audio takes 200; pixels would be 387
        clip = load_clip((None, 1, np.tile(tone(60.0)[0], 10), 16_000), SPEC)
    assert clip.windows.patches.shape == (300, 2, 576, 1176) and not clip.windows.patches.any()


def test_an_empty_window():
    window = Window.empty(SPEC)
    assert window.patches.shape == (2, 576, 1176) and window.patches.dtype == np.uint8
    assert window.mel.shape == (128, 200) and window.mel.dtype == np.float32
    assert not (window.grid_mask.any() or window.mel_length or window.mel.any())
    assert window.grid_time.tolist() == [0, 25]
    other = Window.empty(WindowSpec(seconds=1, grids=3, patch=4, merge=3, temporal_patch=1), 5)
    assert other.patches.shape == (5, 3, 144 * 9, 48) and other.mel.shape == (5, 128, 100)
    assert other.grid_time.tolist() == [[0, 8, 16]] * 5 and other.mel_length.shape == (5,)
