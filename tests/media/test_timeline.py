"""Frame sampling against a search over all frames, audio alignment, and excerpts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnizip_jax.media import load_clip
from omnizip_jax.media.timeline import (
    AudioChunk,
    ContinuousClock,
    Excerpt,
    FrameSampler,
    VideoFrame,
    align_audio,
    grid_position,
)
from omnizip_jax.testbed.synthetic_clips import SPEC, make_clip
from omnizip_jax.window_spec import WindowSpec


def video_frames(times, end):
    ends = [*times[1:], end]
    return [
        VideoFrame(a, b, 9, 16, lambda height, width: np.zeros((height, width, 3), np.uint8))
        for a, b in zip(times, ends, strict=True)
    ]


def sample(sampler, frames):
    return [pair for frame in frames for pair in sampler.push(frame)] + sampler.finish()


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    start=st.integers(0, 4000),
    spacing=st.sampled_from([0.5, 0.77, 3.0]),
)
def test_samples_are_the_frames_on_display(gaps, start, spacing):
    edges = (start + np.cumsum([0, *gaps])) / 1000  # milliseconds, as in a container
    frames = video_frames(edges[:-1].tolist(), float(edges[-1]))
    expected = []
    for index in range(int(edges[-1] / spacing) + 1):
        middle = (index + 0.5) * spacing + 0.001  # a millisecond of rounding is forgiven
        expected += [(index, f) for f in frames if f.start <= middle < f.end]
    # Times closer to the boundary than floats can tell may go either way.
    middles = (np.arange(index + 1) + 0.5) * spacing + 0.001
    if np.abs(middles[:, None] - edges).min() < 1e-9:
        return
    sampler = FrameSampler(spacing)
    wanted = [f for f in frames if sampler.needs(f.start, f.end) or f is frames[-1]]
    got = sample(sampler, frames)
    assert got == expected if expected else [f for _, f in got] == [frames[-1]]
    # Frames that are not wanted change nothing.
    assert sample(FrameSampler(spacing), wanted) == got


def test_a_tail_shorter_than_half_an_interval_is_not_sampled():
    frames = video_frames((np.arange(300) / 29.97).tolist(), 300 / 29.97)  # 10.01 s
    assert [index for index, _ in sample(FrameSampler(0.5), frames)] == list(range(20))


def test_audio_gaps_overlaps_and_jitter():
    ones = np.ones(1600, np.float32)
    assert align_audio(1600, AudioChunk(0.1, ones)) is ones
    assert align_audio(1600, AudioChunk(0.13, ones)) is ones
    gap = align_audio(1600, AudioChunk(0.2, ones))
    assert len(gap) == 3200 and not gap[:1600].any() and gap[1600:].all()
    assert len(align_audio(3200, AudioChunk(0.1, ones))) == 0
    assert len(align_audio(0, AudioChunk(-0.01, ones))) == 1440  # before the clip starts
    with pytest.raises(ValueError, match="jump"):
        align_audio(0, AudioChunk(1e6, ones))


@given(grids=st.integers(2, 400), seconds=st.floats(1.0, 30.0))
def test_a_window_never_holds_more_than_two_grids(grids, seconds):
    windows = [grid_position(grid, seconds, 25) // 50 for grid in range(grids)]
    assert max(np.bincount(windows)) <= 2
    assert [grid_position(grid, 1.0, 25) for grid in range(5)] == [0, 25, 50, 75, 100]
    assert [grid_position(grid, 1.0, 10) for grid in range(3)] == [0, 10, 20]


def video_frame(start: float, end: float) -> VideoFrame:
    return VideoFrame(start, end, 1, 1, lambda h, w: np.zeros((h, w, 3), np.uint8))


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
    # AAC is lossy: the same audio, not the same samples.
    assert np.corrcoef(part.windows.mel.ravel(), by_hand.windows.mel.ravel())[0, 1] > 0.9


def test_media_after_the_end_are_not_read():
    read = []

    def events():
        for second in range(100):
            read.append(second)
            yield AudioChunk(float(second), np.zeros(16_000, np.float32))
            yield VideoFrame(
                float(second), second + 1.0, 1, 1, lambda h, w: np.zeros((h, w, 3), np.uint8)
            )

    out = list(Excerpt(1.0, 3.0).select(events(), (VideoFrame, AudioChunk)))
    assert read[-1] == 3
    assert [(type(e).__name__, e.start) for e in out] == [
        ("AudioChunk", 0.0),
        ("AudioChunk", 1.0),
        ("VideoFrame", 0.0),
        ("VideoFrame", 1.0),
    ]


def test_a_frame_is_displayed_until_the_next_one():
    """Its own end is a guess where the frame rate varies."""
    pictures = [video_frame(start, start + 0.1) for start in (0.0, 1.0, 5.0)]
    out = list(Excerpt(2.0).select(pictures, (VideoFrame,)))
    assert [(e.start, e.end) for e in out] == [(0.0, 3.0), (3.0, pytest.approx(3.1))]


@pytest.mark.parametrize(
    ("start", "end"), [(-1.0, None), (3.0, 2.0), (1.0, 1.0), (float("nan"), 2.0), ("1", None)]
)
def test_invalid_times(start, end):
    with pytest.raises(ValueError, match="start and end are seconds"):
        load_clip(arrays(), start=start, end=end)


def test_an_empty_excerpt():
    with pytest.raises(ValueError, match="no audio could be decoded from 7 s to 9 s"):
        load_clip(arrays(), WindowSpec(), start=7.0, end=9.0)


def test_an_excerpt_of_a_held_frame_shows_it():
    """As in a recording of a screen, whose frames are stored when something changes."""
    pictures = [video_frame(start, start + 0.04) for start in (0.0, 1.0, 12.0, 25.0)]
    times = [(e.start, e.end) for e in Excerpt(2.0, 8.0).select(pictures, (VideoFrame,))]
    assert times == [(0.0, 6.0)]
    times = [(e.start, e.end) for e in Excerpt(10.0, 20.0).select(pictures, (VideoFrame,))]
    assert times == [(0.0, 2.0), (2.0, 10.0)]
    assert list(Excerpt(26.0, 30.0).select(pictures, (VideoFrame,))) == []


@pytest.mark.parametrize("end", [float("inf"), np.inf, np.float32("inf")])
def test_an_infinite_end_is_the_end(end):
    for start in (0.0, 2.0):
        part = load_clip(arrays(), start=start, end=end)
        expected = load_clip(arrays(), start=start)
        assert part.duration == expected.duration
        np.testing.assert_array_equal(part.windows.mel, expected.windows.mel)
    with pytest.raises(ValueError, match="decoded from 7 s to its end"):
        load_clip(arrays(), WindowSpec(), start=7.0, end=end)


# A clock that restarts

VIDEO, AUDIO = 0, 1


def continued(packets, jumps=False, key=True):
    """Times of (stream, time), each 0.5 s, on the clock that goes on."""
    clock = ContinuousClock(jumps)
    return [
        time + clock.offset(stream, time, time, 0.5, audio=stream == AUDIO, key=key)
        for stream, time in packets
    ]


def interleaved(*times):
    return [(stream, time) for time in times for stream in (VIDEO, AUDIO)]


def test_a_clock_that_goes_on_is_unchanged():
    packets = interleaved(*(3.0 + 0.5 * np.arange(20)), 100.0, 100.5)
    assert continued(packets) == [time for _, time in packets]
    reordered = [(VIDEO, time) for time in (0.0, 2.0, 1.0, 1.5, 4.0, 3.0)]
    assert continued(reordered, key=False) == [time for _, time in reordered]


@pytest.mark.parametrize("again", [0.0, 1.0, 2.0])
def test_a_clock_that_goes_back_goes_on(again):
    packets = interleaved(2.0, 2.5, 3.0) + interleaved(again, again + 0.5) + interleaved(0.0, 0.5)
    expected = np.repeat([2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0], 2)
    np.testing.assert_allclose(continued(packets), expected)


def test_streams_restart_one_after_the_other_and_stay_in_step():
    packets = [(VIDEO, 0.0), (VIDEO, 0.5), (AUDIO, 0.0), (AUDIO, 0.5), (VIDEO, 0.0), (AUDIO, 1.0)]
    packets += [(VIDEO, 0.5), (AUDIO, 0.1), (AUDIO, 0.6), (VIDEO, 1.0)]
    expected = [0.0, 0.5, 0.0, 0.5, 1.0, 1.0, 1.5, 1.1, 1.6, 2.0]
    np.testing.assert_allclose(continued(packets), expected)


def test_a_clock_that_jumps_forward():
    packets = interleaved(0.0, 0.5, 1000.0, 1000.5, 5.0, 5.5)
    expected = np.repeat([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], 2)
    np.testing.assert_allclose(continued(packets, jumps=True), expected)
    assert continued(packets[:8]) == [time for _, time in packets[:8]]  # a pause, elsewhere
    assert continued([(VIDEO, 0.0), (VIDEO, 30.0)], jumps=True, key=False) == [0.0, 30.0]
    # Audio went on: the frame was held.
    held = [(VIDEO, 0.0), *((AUDIO, 0.5 * i) for i in range(80)), (VIDEO, 39.0)]
    assert continued(held, jumps=True) == [time for _, time in held]


def test_timestamps_of_audio_that_run_ahead_and_return_are_no_restart():
    """Of an Ogg file with empty packets: each page begins where the packets before it end."""
    packets = [(AUDIO, 2.0 * page + 1.5 * i) for page in range(5) for i in range(4)]
    assert continued(packets) == [time for _, time in packets]


def test_positions_are_the_product_of_transformers():
    """``get_rope_index`` truncates a float32 product: 2.56 s per grid put grid 25 at 1599."""
    for seconds in range(1, 841):
        per_grid = max(1.0, 2 * seconds / 128)
        theirs = (torch.arange(64) * torch.tensor([per_grid])[0].float() * 25).long()
        assert [grid_position(grid, per_grid, 25) for grid in range(64)] == theirs.tolist()
