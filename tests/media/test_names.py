"""Names of files that look like something else to FFmpeg or to a shell."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from omnizip_jax.media import load_clip, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, write

SMALL = WindowSpec(grid_slots=12)
NAMES = (
    "2026-11-30T10:15:00.mp4",
    "file:x.mp4",
    "device:v4l2:x.mp4",
    "http:x.mp4",
    "C:\\clips\\x.mp4",
    "concat:a|b.mp4",
    "-x.mp4",
    "a%20b.mp4",
    "a?b=c#d.mp4",
    "img%03d.mp4",
    "~x.mp4",
    "new\nline é.mp4",
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("names") / "x.mp4", grey([60] * 4), fps=4)


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_file_is_a_file(video, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, tmp_path / name)
    for path in (name, tmp_path / name):
        for clip in (load_clip(path, SMALL), load_clip(path, SMALL, max_frames=2)):
            assert clip.duration == pytest.approx(1.0, abs=0.01)
        assert len(list(windows(path, SMALL))) == 1


def test_file_urls_are_paths(video, tmp_path):
    shutil.copy(video, tmp_path / "a b.mp4")
    for form in ("file://{}/a%20b.mp4", "file://localhost{}/a b.mp4", "FILE:{}/a%20b.mp4"):
        assert load_clip(form.format(tmp_path), SMALL).has_video
    with pytest.raises(ValueError, match=r"/none\.mp4: cannot be opened"):
        load_clip(f"file://{tmp_path}/none.mp4", SMALL)


def test_a_still_is_not_a_pattern_of_names(tmp_path):
    Image.new("RGB", (64, 48), (0, 0, 250)).save(tmp_path / "img1.png")
    Image.new("RGB", (64, 48), (250, 0, 0)).save(tmp_path / "img%d.png")
    pixels = load_clip(tmp_path / "img%d.png", SMALL).windows.patches[0, 0, 0]
    assert np.all(pixels.reshape(3, -1).mean(1) == [250, 0, 0])
