"""Whole clips of every kind, each with a file made for it."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.bouncing_clip import write_clip
from experiments.clip_inputs import clip_log_mel
from omnizip_jax.media import load_clip, window_frames
from omnizip_jax.media.container import MediaFile
from omnizip_jax.media.timeline import FrameSampler
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, served, tone, write

SMALL = WindowSpec(grid_slots=12)  # 4:3 frames become 3 x 4 tokens: 84 x 112 pixels
load = functools.partial(load_clip, spec=SMALL)


def levels(clip):
    """Mean grey of each frame of each grid that exists."""
    return window_frames(clip.windows).mean(axis=(1, 2, 3))


def is_level(clip, expected):
    assert len(levels(clip)) == len(expected)
    np.testing.assert_allclose(levels(clip), expected, atol=3)


# Video


def test_shapes_of_an_ordinary_clip(tmp_path):
    clip = load_clip(write_clip(tmp_path / "demo.mp4", seconds=5))
    windows = clip.windows
    assert windows.patches.shape == (3, 2, 576, 1176) and windows.patches.dtype == np.uint8
    assert windows.mel.shape == (3, 128, 200) and windows.mel.dtype == np.float32
    assert windows.grid_size.tolist() == [[9, 16]] * 3
    assert windows.grid_mask.tolist() == [[True, True], [True, True], [True, False]]
    assert windows.grid_time.tolist() == [[0, 25]] * 3
    assert windows.mel_length[:2].tolist() == [200, 200] and 100 <= windows.mel_length[2] <= 103
    assert not windows.mel[2, :, windows.mel_length[2] :].any()
    assert clip.has_video and clip.has_audio and clip.seconds_per_grid == 1.0
    assert 5.0 <= clip.duration < 5.03  # the audio's last block may be padded
    assert window_frames(clip.windows).shape == (10, 252, 448, 3)


def test_positions_are_those_of_the_spec():
    spec = dataclasses.replace(SMALL, positions_per_second=10)
    clip = load_clip((grey([50] * 10), 2.0, None, 0), spec)
    assert clip.windows.grid_time.tolist() == [[0, 10]] * 3
    assert clip.windows.grid_mask.tolist() == [[True, True], [True, True], [True, False]]


def test_the_frame_in_the_middle_of_each_half_second(tmp_path):
    path = write(tmp_path / "a.mp4", grey(np.arange(75) * 3), fps=25)
    clip = load(path)
    middle = [3 * int((0.25 + 0.5 * i) * 25) for i in range(6)]
    is_level(clip, middle)


def test_variable_frame_rate(tmp_path):
    times = [0, 0.1, 0.15, 0.9, 1.0, 2.6, 2.61, 2.62, 3.4, 3.9]
    level = np.arange(10) * 25
    path = write(tmp_path / "a.mkv", grey(level), times=times)
    middles = 0.25 + 0.5 * np.arange(8)
    is_level(load(path), [level[np.searchsorted(times, m, side="right") - 1] for m in middles])


def test_skipped_frames_change_nothing(tmp_path):
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (100, 6, 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    options = {"bf": "3", "g": "40", "preset": "medium"}
    path = write(tmp_path / "a.mp4", frames.astype(np.uint8), options=options)

    def pictures(wants):
        with MediaFile(path) as media:
            return {p.start: p.render(48, 64) for p in media.decode(wants)}

    every = pictures(lambda start, end: True)
    some = pictures(FrameSampler(0.5).needs)
    assert len(every) == 100 and len(some) < 80
    for start, pixels in some.items():
        np.testing.assert_array_equal(pixels, every[start])
    on_display = [max(t for t in every if t <= 0.25 + 0.5 * i) for i in range(8)]
    assert set(on_display) <= set(some)


def test_odd_sizes(tmp_path):
    path = write(tmp_path / "a.mkv", grey(np.arange(50) * 4, height=49, width=67))
    clip = load(path)
    assert clip.windows.grid_size[0].tolist() == [3, 4]
    is_level(clip, [4 * int((0.25 + 0.5 * i) * 25) for i in range(4)])


def test_decoders_resize_agrees_with_pillow(tmp_path):
    """Both at once, colour conversion and bicubic scaling, within a few levels of 255."""
    path = write_clip(tmp_path / "a.mp4", seconds=1)
    with av.open(str(path)) as container:
        frame = list(container.decode(video=0))[6]
    full = Image.fromarray(frame.to_ndarray(format="rgb24", interpolation=4 | 0x40000 | 0x2000))
    expected = np.asarray(full.resize((448, 252), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(window_frames(load_clip(path).windows)[0] - expected)
    assert difference.mean() < 0.4 and np.quantile(difference, 0.999) < 16


def test_extreme_aspect(tmp_path):
    frames = np.zeros((4, 600, 8, 3), np.uint8)
    assert load((frames, 2.0, None, 0)).windows.grid_size[0].tolist() == [12, 1]
    with pytest.raises(ValueError, match="200:1"):
        load((np.zeros((4, 1000, 4, 3), np.uint8), 2.0, None, 0))


# Audio


@pytest.mark.parametrize(
    ("layout", "channels", "rate"),
    [
        ("mono", 1, 8_000),
        ("stereo", 2, 22_050),
        ("mono", 1, 16_000),
        ("stereo", 2, 44_100),
        ("5.1", 6, 48_000),
    ],
)
def test_layouts_and_rates(tmp_path, layout, channels, rate):
    sound = tone(3.0, rate, channels=channels)
    sound[:, :rate] = 0  # silent until 1 s
    clip = load(write(tmp_path / "a.mkv", sound=sound, rate=rate, layout=layout))
    reference = tone(3.0)
    reference[:, :16_000] = 0
    expected = clip_log_mel(reference[0], 128)
    mel = np.concatenate(list(clip.windows.mel), axis=1)[:, :300]
    assert not clip.has_video and clip.has_audio
    assert clip.windows.mel_length.tolist() == [200, 100]
    np.testing.assert_allclose(mel[:, 104:296].max(0), expected[:, 104:296].max(0), atol=0.02)
    assert (mel[:, 104:296].argmax(0) == expected[:, 104:296].argmax(0)).all()
    assert mel[:, :96].max() < 0 and mel[:, 102].max() > 0.5  # no earlier, no later


def test_compressed_audio_is_in_time(tmp_path):
    sound = np.zeros((1, 2 * 48_000), np.float32)
    sound[:, 48_000:48_480] = 0.8 * tone(0.01, 48_000) / 0.25
    path = write(tmp_path / "a.mp4", grey([0] * 50), sound=sound, rate=48_000, audio_codec="aac")
    mel = load(path).windows.mel[0]
    assert abs(int(mel.max(0).argmax()) - 100) <= 2


def test_one_channel_among_six_is_a_sixth(tmp_path):
    sound = tone(1.0, 48_000, channels=6)
    sound[1:] = 0
    one = load(write(tmp_path / "a.mkv", sound=sound, rate=48_000, layout="5.1")).windows
    with_all = load((None, 1, tone(1.0)[0] / 6, 16_000)).windows
    np.testing.assert_allclose(
        one.mel[:, :, 5:90].max(1), with_all.mel[:, :, 5:90].max(1), atol=0.02
    )


def test_video_without_audio(tmp_path):
    clip = load(write(tmp_path / "a.mp4", grey([50] * 50)))
    assert clip.has_video and not clip.has_audio
    assert clip.windows.mel_length.tolist() == [0] and not clip.windows.mel.any()


def test_audio_longer_than_video(tmp_path):
    clip = load(write(tmp_path / "a.mkv", grey([50] * 25), sound=tone(5.0)))
    assert clip.windows.grid_mask.tolist() == [[True, False], [False, False], [False, False]]
    assert clip.windows.mel_length.tolist() == [200, 200, 100]
    assert not clip.windows.patches[1:].any()


def test_video_longer_than_audio(tmp_path):
    clip = load(write(tmp_path / "a.mkv", grey([50] * 125), sound=tone(2.5)))
    assert clip.windows.grid_mask.tolist() == [[True, True], [True, True], [True, False]]
    assert clip.windows.mel_length.tolist() == [200, 50, 0]


def test_late_audio_and_gaps(tmp_path):
    path = write(tmp_path / "a.mkv", grey([50] * 100), sound=tone(0.5), starts=(1.0, 3.0))
    mel = np.concatenate(list(load(path).windows.mel), axis=1)
    sounds = mel.max(0) > 0.5
    assert sounds[102:148].all() and sounds[302:348].all()
    assert not sounds[:98].any() and not sounds[152:298].any()


def test_late_video(tmp_path):
    times = 2.6 + np.arange(20) / 10
    path = write(tmp_path / "a.mkv", grey([70] * 20), times=times, fps=10, sound=tone(5.0))
    clip = load(path)
    assert clip.windows.grid_mask.tolist() == [[False, False], [True, True], [True, False]]
    assert clip.windows.grid_time.tolist() == [[0, 25]] * 3
    is_level(clip, [70] * 6)


def test_streams_can_be_left_out(tmp_path):
    path = write(tmp_path / "a.mkv", grey([50] * 50), sound=tone(2.0))
    assert not load(path, use_audio=False).has_audio
    assert not load(path, use_video=False).has_video
    with pytest.raises(ValueError, match="both False"):
        load(path, use_video=False, use_audio=False)


# Lengths


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(1, [0, 0]), (5, [32, 32]), (8, [48, 48]), (20, [48, 144]), (40, [48, 144, 248, 248])],
)
def test_shorter_than_a_window(tmp_path, frames, expected):
    clip = load(write(tmp_path / "a.mp4", grey(np.arange(frames) * 8), fps=25))
    if frames == 40:  # grey ends at 255
        expected = [48, 144, 8 * 31, 8 * 31]
    assert clip.windows.patches.shape[0] == 1
    assert clip.windows.grid_mask[0].tolist() == [True, frames == 40]
    np.testing.assert_allclose(levels(clip), expected, atol=12)


def test_max_frames_samples_the_whole_clip_at_its_true_pace(tmp_path):
    frames = grey(np.arange(200))
    path = write(tmp_path / "a.mkv", frames, fps=10, sound=tone(20.0))  # 20 s
    clip = load(path, max_frames=9)
    assert clip.seconds_per_grid == pytest.approx(5.0, abs=0.02)
    is_level(clip, 12 + 25 * np.arange(8))
    assert clip.windows.grid_mask.sum(1).tolist() == [1, 0, 1, 0, 0, 1, 0, 1, 0, 0]
    held = clip.windows.grid_mask
    assert (50 * np.nonzero(held)[0] + clip.windows.grid_time[held]).tolist() == [0, 125, 250, 375]
    assert load(path, max_frames=40).seconds_per_grid == 1.0
    assert load(path, max_frames=400).windows.grid_mask.all()
    with pytest.raises(ValueError, match="max_frames"):
        load(path, max_frames=1)


def test_other_window_shapes(tmp_path):
    path = write(tmp_path / "a.mkv", grey(np.arange(100) * 2), sound=tone(4.0))
    spec = WindowSpec(grid_slots=48, patch=4, merge=2, mel_bins=80)
    clip = load_clip(path, spec)
    assert clip.windows.patches.shape == (2, 2, 192, 96)
    assert clip.windows.mel.shape == (2, 80, 200)
    assert window_frames(clip.windows, spec).shape == (8, 48, 64, 3)


# Sources


def test_url(tmp_path):
    write(tmp_path / "a.mp4", grey([50] * 50), sound=tone(2.0), audio_codec="aac")

    with served(tmp_path) as url:
        clip = load(f"{url}/a.mp4")
        assert clip.has_video and clip.has_audio
        with pytest.raises(ValueError, match=r"missing\.mp4"):
            load(f"{url}/missing.mp4")


def test_arrays_equal_a_file(tmp_path):
    frames, sound = grey(np.arange(40) * 5), tone(4.0, 44_100)
    path = write(tmp_path / "a.mkv", frames, fps=10, sound=sound, rate=44_100)
    ours = load((frames, 10, sound[0], 44_100))
    file = load(path)
    np.testing.assert_allclose(levels(ours), levels(file), atol=3)
    np.testing.assert_allclose(ours.windows.mel.max(1), file.windows.mel.max(1), atol=0.02)
    np.testing.assert_array_equal(ours.windows.mel_length, file.windows.mel_length)


def test_arrays_at_16_khz_pass_untouched():
    sound = np.random.default_rng(0).normal(0, 0.1, 33_000).astype(np.float32)
    clip = load((grey([9] * 8), 2.0, sound, 16_000))
    mel = np.concatenate(list(clip.windows.mel), axis=1)[:, :207]
    np.testing.assert_array_equal(mel, clip_log_mel(sound, 128))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((4, 48, 64, 3), np.float32)}, "uint8 RGB"),
        ({"frames": np.zeros((4, 48, 64), np.uint8)}, "uint8 RGB"),
        ({"frames": np.zeros((0, 48, 64, 3), np.uint8)}, "uint8 RGB"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"waveform": np.zeros((2, 100), np.float32)}, "mono"),
        ({"waveform": np.zeros(100, np.int16)}, "float"),
        ({"waveform": np.full(100, np.nan, np.float32)}, "NaN"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"frames": None, "waveform": None}, "None"),
    ],
)
def test_wrong_arrays(change, message):
    good = {
        "frames": grey([0] * 4),
        "fps": 2.0,
        "waveform": np.zeros(16_000, np.float32),
        "sample_rate": 16_000,
    }
    with pytest.raises(ValueError, match=message):
        load(tuple((good | change).values()))


def test_wrong_tuple():
    with pytest.raises(ValueError, match="sample_rate"):
        load((grey([0]), 2.0))


# Files that are no good


def bad(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "noise", "headless", "folder"])
def test_unreadable_files_are_named(tmp_path, kind):
    good = write(tmp_path / "good.mp4", grey([50] * 50)).read_bytes()
    content = {
        "empty": b"",
        "text": b"not a clip\n" * 100,
        "noise": np.random.default_rng(0).bytes(20_000),
        "headless": good[: len(good) // 2],  # an mp4 without its index
    }
    path = tmp_path / f"{kind}.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind in content:
        bad(path, content[kind])
    with pytest.raises(ValueError, match=f"{kind}.mp4: "):
        load(path)


def test_a_file_without_the_used_stream_is_named(tmp_path):
    path = write(tmp_path / "a.wav", sound=tone(1.0))
    with pytest.raises(ValueError, match=r"a\.wav: expected video"):
        load(path, use_audio=False)


@pytest.mark.filterwarnings("ignore:.*damaged packets")
def test_damaged_content_is_an_error_when_nothing_is_left(tmp_path):
    path = write(tmp_path / "a.mp4", grey([50] * 50))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4: "):
        load(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "codec"), [("mp4", "aac"), ("mkv", "pcm_s16le"), ("ts", "aac")])
def test_random_damage_ends_in_a_clip_or_in_words(tmp_path, kind, codec):
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    sound = tone(1.2, 48_000)
    good = write(tmp_path / f"a.{kind}", frames, sound=sound, rate=48_000, audio_codec=codec)
    for trial in range(30):
        data = np.frombuffer(good.read_bytes(), np.uint8).copy()
        region = slice(-3000, None) if trial % 3 == 0 else slice(3000 if trial % 3 == 1 else None)
        places = random.integers(0, len(data[region]), random.integers(1, 40))
        data[region][places] = random.integers(0, 256, len(places))
        try:
            load(bad(tmp_path / f"bad.{kind}", data.tobytes()))
        except ValueError as error:
            assert f"bad.{kind}: " in str(error)


def test_a_truncated_file_gives_its_start_and_a_warning(tmp_path):
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (150, 48, 64, 3)).astype(np.uint8)
    path = write(tmp_path / "a.mkv", frames, sound=tone(6.0))
    data = path.read_bytes()
    with pytest.warns(UserWarning, match=r"a\.mkv: ends at"):
        clip = load(bad(path, data[: len(data) // 2]))
    assert 2 < clip.duration < 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(bad(path, data))


def test_nan_in_the_audio_of_a_clip(tmp_path):
    sound = tone(1.0)
    sound[:, 99] = np.nan
    path = write(tmp_path / "a.mkv", sound=sound, audio_codec="pcm_f32le")
    with pytest.raises(ValueError, match=r"a\.mkv: .*NaN"):
        load(path)


def test_progress(tmp_path, capsys):
    load(write(tmp_path / "a.mkv", grey([50] * 50)), progress=True)
    assert "decoding" in capsys.readouterr().err
