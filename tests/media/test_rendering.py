"""Orientation, transparency and interlaced frames: what a player shows, worked out by hand."""

from __future__ import annotations

import functools
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from omnizip_jax.media import PushSource, load_clip, window_frames, windows
from omnizip_jax.media.rendering import Picture
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, orient, write

SMALL = WindowSpec(grid_slots=12)
load = functools.partial(load_clip, spec=SMALL)

RED, GREEN, BLUE, WHITE = (200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255)


def corners():
    """48 x 64, of another colour in each quarter."""
    picture = grey([128])[0]
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = BLUE, GREEN, RED
    return picture


def shown(picture, a, b, c, d):
    """(x, y) is shown at (a x + c y, b x + d y), for matrices of 0 and one 1 or -1 a row."""
    if a == 0:
        picture = picture.transpose(1, 0, 2)
        return picture[:: b or 1, :: c or 1]
    return picture[:: d or 1, :: a or 1]


def assert_same_quarters(actual, expected, atol=8):
    def quarters(picture):
        rows, columns = (np.array(picture.shape[:2])[:, None] * (1, 3)) // 4
        return picture[rows[:, None], columns].astype(int)

    np.testing.assert_allclose(quarters(actual), quarters(expected), atol=atol)


def first(source):
    return window_frames(load(source).windows)[0]


# Orientation


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),  # 90 degrees clockwise
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),  # mirrored, as front cameras do
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_display_matrices(tmp_path, matrix):
    clip = load(orient(write(tmp_path / "a.mp4", corners()[None].repeat(30, 0)), *matrix))
    assert clip.windows.grid_size[0].tolist() == ([3, 4] if matrix[0] else [4, 3])
    assert_same_quarters(window_frames(clip.windows)[0], shown(corners(), *matrix))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)])
def test_a_display_matrix_without_an_area_says_nothing(tmp_path, matrix):
    path = orient(write(tmp_path / "a.mp4", corners()[None].repeat(30, 0)), *matrix)
    assert_same_quarters(first(path), corners())


@pytest.mark.parametrize(("degrees", "mirrored"), [(30, 1), (200, -1)])
def test_any_angle_is_shown_whole_over_white(tmp_path, degrees, mirrored):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.array([[mirrored * cosine, -sine], [mirrored * sine, cosine]])  # columns: of x, of y
    path = write(tmp_path / "a.mp4", corners()[None].repeat(30, 0))
    picture = first(orient(path, *axes.T.ravel()))
    height, width = picture.shape[:2]
    ends = axes @ [[0, 64, 0, 64], [0, 0, 48, 48]]
    low, size = ends.min(1), np.ptp(ends, axis=1)
    assert abs(height / width - size[1] / size[0]) < 0.25  # whole tokens
    for place in ([16, 12], [48, 12], [16, 36], [48, 36]):
        x, y = ((axes @ place - low) / size * (width, height)).astype(int)
        np.testing.assert_allclose(picture[y, x], corners()[place[1], place[0]], atol=8)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(picture[y, x], WHITE, atol=8)


def test_a_matrix_that_stretches(tmp_path):
    frames = corners()[None].repeat(30, 0)
    wide = load(orient(write(tmp_path / "wide.mp4", frames), 2, 0, 0, 1))
    assert wide.windows.grid_size[0].tolist() == [2, 6]
    high = load(orient(write(tmp_path / "high.mp4", frames), 0, 2, -1, 0))  # turned after it
    assert high.windows.grid_size[0].tolist() == [6, 2]


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("jpg", orientation) for orientation in range(1, 9)), ("png", 5), ("webp", 7), ("tiff", 2)],
)
def test_exif_orientations_of_images(tmp_path, kind, orientation):
    exif, path = Image.Exif(), tmp_path / f"a.{kind}"
    exif[0x0112] = orientation
    Image.fromarray(corners()).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert_same_quarters(first(path), expected)


def test_a_decoded_frame_is_freed_at_once(tmp_path):
    """Not by the garbage collector: until it runs, frames would fill gigabytes."""
    path = orient(write(tmp_path / "a.mp4", grey([0] * 5)), 0, 1, 1, 0)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    references = sys.getrefcount(frame)
    Picture(frame, 1.0)
    assert sys.getrefcount(frame) == references


# Transparency


def half_transparent():
    """Red on the left; on the right transparent, with blue below."""
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[:, :32], picture[:, 32:] = (*RED, 255), (*BLUE, 0)
    return picture


def transparent_video(path, codec, pixels):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(half_transparent(), format="rgba")
            frame.pts, frame.time_base = index, Fraction(1, 4)
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())
    return path


def assert_white_on_the_right(picture, atol=8):
    height, width = picture.shape[:2]
    np.testing.assert_allclose(picture[height // 2, width // 4], RED, atol=atol)
    np.testing.assert_allclose(picture[height // 2, width // 2 + width // 4], WHITE, atol=1)
    # Nothing hidden bleeds over the edge: between red and white, blue and green stay equal.
    apart = picture[..., 1].astype(int) - picture[..., 2]
    assert abs(apart).max() <= atol


@pytest.mark.parametrize(
    ("kind", "codec", "pixels"),
    [
        ("mov", "qtrle", "argb"),
        ("mov", "png", "rgba"),
        ("mov", "prores_ks", "yuva444p10le"),
        ("mkv", "ffv1", "bgra"),
        ("apng", "apng", "rgba"),
    ],
)
def test_transparent_video_is_shown_over_white(tmp_path, kind, codec, pixels):
    path = transparent_video(tmp_path / f"a.{kind}", codec, pixels)
    assert_white_on_the_right(first(path), 8 if kind != "mov" else 16)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_is_shown_over_white(tmp_path, codec):
    picture = first(transparent_video(tmp_path / "a.webm", codec, "yuva420p")).astype(int)
    height, width = picture.shape[:2]
    np.testing.assert_allclose(picture[height // 2, width // 4], RED, atol=20)
    np.testing.assert_allclose(picture[height // 2, width // 2 + width // 4], WHITE, atol=6)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_transparent_images_are_shown_over_white(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    options = {"webp": {"lossless": True, "exact": True}}.get(kind, {})
    Image.fromarray(half_transparent()).save(path, **options)
    assert_white_on_the_right(first(path))


def test_a_transparent_palette(tmp_path):
    image = Image.fromarray(np.repeat([[0] * 32 + [1] * 32], 48, 0).astype(np.uint8), "P")
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / "a.png", transparency=1)
    assert_white_on_the_right(first(tmp_path / "a.png"))


def test_transparent_arrays_are_shown_over_white():
    frames = half_transparent()[None].repeat(4, 0)
    frames[..., 3] //= 2  # half of it everywhere
    frames = np.concatenate([half_transparent()[None].repeat(4, 0), frames])
    pictures = window_frames(load((frames, 2.0, None, 0)).windows)
    assert_white_on_the_right(pictures[0])
    np.testing.assert_allclose(pictures[4][40, 20], [228, 148, 148], atol=1)  # (200, 40, 40) by 127
    source = PushSource()
    source.push_frames(frames, np.arange(8) / 2)
    source.close()
    pushed = list(windows(source, SMALL, use_audio=False))
    np.testing.assert_array_equal(window_frames(pushed[0]), pictures[:4])


# Interlaced


@pytest.mark.parametrize("moving", [False, True])
def test_interlaced_frames_are_scaled_as_a_whole(tmp_path, moving):
    random = np.random.default_rng(0)
    frames = grey([40] * 12, 128, 192)
    if not moving:
        frames[:] = random.integers(40, 216, (16, 24, 1)).repeat(8, 0).repeat(8, 1)
    for index, frame in enumerate(frames if moving else ()):
        for field in (0, 1):
            frame[field::2, 20 + 8 * index + 4 * field :][:, :30] = 220
    options = {"x264-params": "tff=1:interlaced=1", "preset": "ultrafast"}
    path = write(tmp_path / "a.mp4", frames, options=options)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    assert decoded[6].interlaced_frame
    picture = first(path).astype(int)
    full = Image.fromarray(decoded[6].to_ndarray(format="rgb24"))
    expected = full.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(picture - np.asarray(expected)).mean() < 1
