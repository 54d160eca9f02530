"""The bouncing clip has quiet and busy periods in audio and video."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bouncing_clip import write_clip
from omnizip_jax.media import load_clip, window_frames
from omnizip_jax.window_spec import WindowSpec

SMALL = {"seconds": 8, "size": (160, 90), "fps": 10}


def test_quiet_and_busy_periods(tmp_path):
    clip = load_clip(write_clip(tmp_path / "a.mp4", **SMALL), WindowSpec(grid_slots=36))
    assert clip.has_video and clip.has_audio
    frames = window_frames(clip.windows).astype(float)
    motion = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    mel = np.concatenate(list(clip.windows.mel), axis=1)
    loudness = mel.reshape(128, 16, 50).max(axis=0).mean(axis=1)  # for every half second
    # Quiet around 0, 4 and 8 s, busy around 2 and 6 s.
    assert motion[[2, 3, 4, 10, 11, 12]].min() > 5 * motion[7]
    assert loudness[[3, 4, 11, 12]].min() > loudness[[0, 7, 8]].max() + 0.5


def test_the_seed_determines_the_clip(tmp_path):
    first, again, other = (
        load_clip(write_clip(tmp_path / f"{i}.mp4", **SMALL, seed=seed), WindowSpec(grid_slots=36))
        for i, seed in enumerate((1, 1, 2))
    )
    frames, same, different = (
        window_frames(c.windows).astype(float) for c in (first, again, other)
    )
    assert np.abs(frames - same).mean() < 1 < np.abs(frames - different).mean()
    np.testing.assert_array_equal(first.windows.mel, again.windows.mel)


@pytest.mark.parametrize("wrong", [{"size": (161, 90)}, {"size": (8, 8)}, {"seconds": 0}])
def test_bad_settings(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"expected|must"):
        write_clip(tmp_path / "a.mp4", **(SMALL | wrong))
    assert not (tmp_path / "a.mp4").exists()
