"""Parts of clips, against the same parts cut out by hand before."""

from __future__ import annotations

import numpy as np
import pytest

from omnizip_jax.config import WindowSpec
from omnizip_jax.media import load_clip
from omnizip_jax.media.clock import Picture, Sound
from omnizip_jax.media.excerpt import Excerpt
from omnizip_jax.testbed.synthetic_clips import SPEC, make_clip


def picture(start: float, end: float) -> Picture:
    return Picture(start, end, 1, 1, lambda h, w: np.zeros((h, w, 3), np.uint8))


def arrays(seconds: float = 6.0, fps: int = 10, rate: int = 16_000):
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (round(seconds * fps), 32, 48, 3), np.uint8)
    return frames, fps, 0.1 * random.standard_normal(round(seconds * rate)).astype(np.float32), rate


@pytest.mark.parametrize(("start", "end"), [(0.0, 3.7), (2.0, 6.0), (1.3, 4.5), (2.0, None)])
def test_arrays_are_read_as_if_cut_by_hand(start, end):
    frames, fps, waveform, rate = arrays()
    last = 6.0 if end is None else end
    cut = (
        frames[round(start * fps) : round(last * fps)],
        fps,
        waveform[round(start * rate) : round(last * rate)],
        rate,
    )
    part, expected = load_clip(arrays(), start=start, end=end), load_clip(cut)
    assert part.duration == pytest.approx(last - start)
    np.testing.assert_array_equal(part.windows.patches, expected.windows.patches)
    np.testing.assert_array_equal(part.windows.grid_mask, expected.windows.grid_mask)
    np.testing.assert_allclose(part.windows.mel, expected.windows.mel, atol=1e-5)
    np.testing.assert_array_equal(part.windows.mel_length, expected.windows.mel_length)


def test_max_frames_are_spread_over_the_part():
    part = load_clip(arrays(), start=2.0, end=6.0, max_frames=4)
    assert part.seconds_per_grid == pytest.approx(2.0)
    assert int(np.sum(part.windows.grid_mask)) == 2


def test_a_file_is_read_as_its_arrays(tmp_path):
    clip = make_clip(0)
    whole = load_clip(clip.write(tmp_path / "clip.mp4"), SPEC)
    part = load_clip(tmp_path / "clip.mp4", SPEC, start=2, end=6)
    np.testing.assert_array_equal(part.windows.patches, whole.windows.patches[1:3])
    assert part.duration == pytest.approx(4.0, abs=1e-3)
    frames, fps, waveform, rate = clip.arrays
    by_hand = load_clip((frames[4:12], fps, waveform[2 * rate : 6 * rate], rate), SPEC)
    # AAC is lossy: the same sound, not the same samples.
    assert np.corrcoef(part.windows.mel.ravel(), by_hand.windows.mel.ravel())[0, 1] > 0.9


def test_what_lies_behind_the_end_is_not_read():
    read = []

    def events():
        for second in range(100):
            read.append(second)
            yield Sound(float(second), np.zeros(16_000, np.float32))
            yield Picture(
                float(second), second + 1.0, 1, 1, lambda h, w: np.zeros((h, w, 3), np.uint8)
            )

    out = list(Excerpt(1.0, 3.0).cut(events(), (Picture, Sound)))
    assert read[-1] == 3
    assert [(type(e).__name__, e.start) for e in out] == [
        ("Sound", 0.0),
        ("Sound", 1.0),
        ("Picture", 0.0),
        ("Picture", 1.0),
    ]


def test_a_picture_stays_until_the_next_one_comes():
    """Its own end is a guess where the frame rate varies."""
    pictures = [picture(start, start + 0.1) for start in (0.0, 1.0, 5.0)]
    out = list(Excerpt(2.0).cut(pictures, (Picture,)))
    assert [(e.start, e.end) for e in out] == [(0.0, 3.0), (3.0, pytest.approx(3.1))]


@pytest.mark.parametrize(
    ("start", "end"), [(-1.0, None), (3.0, 2.0), (1.0, 1.0), (float("nan"), 2.0), ("1", None)]
)
def test_times_that_are_none(start, end):
    with pytest.raises(ValueError, match="start and end are seconds"):
        load_clip(arrays(), start=start, end=end)


def test_nothing_in_between():
    with pytest.raises(ValueError, match="no sound could be decoded from 7 s to 9 s"):
        load_clip(arrays(), WindowSpec(), start=7.0, end=9.0)
