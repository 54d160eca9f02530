"""A synthetic clip of bouncing balls, a note for every bounce, with quiet and busy periods."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

SAMPLE_RATE = 48_000
PERIOD_SECONDS = 4.0  # of the activity
SCALE = (0, 3, 5, 7, 10)  # minor pentatonic: any two notes go together


def write_clip(
    path: str | Path,
    seconds: float = 10.0,
    size: tuple[int, int] = (640, 360),
    fps: int = 25,
    seed: int = 0,
    balls: int = 6,
) -> Path:
    """Write an mp4 (H.264 and AAC) with correlated audio and video.

    Coloured balls stand still in quiet periods and move in busy ones; each has a note that is
    played when it touches the border. So the activity differs between windows.

    Args:
        path: file to write.
        seconds: length of the clip.
        size: width and height in pixels, both even.
        fps: frames per second.
        seed: of colours and movement; the same seed gives the same clip up to the rounding of
            the encoder.
        balls: number of balls.

    Returns:
        The path.

    Raises:
        ValueError: ``size`` is odd or too small, or there is no frame or no ball.
    """
    width, height = size
    if width % 2 or height % 2 or min(size) < 32:
        raise ValueError(f"size must be even and at least 32 x 32 pixels, got {width} x {height}")
    frames = round(seconds * fps)
    if frames < 1 or balls < 1:
        raise ValueError(
            f"expected at least one frame and one ball, got {seconds} s at {fps} fps, {balls} balls"
        )

    random = np.random.default_rng(seed)
    # Half-crossings of the frame per second along x and y, and the start between the borders.
    speed = random.uniform(0.5, 1.6, (balls, 2))
    start = random.uniform(0.2, 0.8, (balls, 2))
    hues = (random.uniform() + np.arange(balls) / balls) % 1.0
    radius = max(4, min(size) // 12)
    sound = _sound(seconds, speed, start)

    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=fps)
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        picture.options = {"preset": "veryfast", "crf": "23"}
        tone = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")

        written = 0
        for index in range(frames):
            image = _draw(size, _flight(index / fps), speed, start, hues, radius)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            until = round((index + 1) / fps * SAMPLE_RATE)
            block = av.AudioFrame.from_ndarray(sound[None, written:until], "fltp", "mono")
            block.sample_rate, block.pts = SAMPLE_RATE, written
            container.mux(tone.encode(block))
            written = until
        container.mux(picture.encode())
        container.mux(tone.encode())
    return Path(path)


def _flight(time):
    """Seconds of movement until ``time``: the integral of an activity between 0 and 1."""
    turn = 2 * math.pi / PERIOD_SECONDS
    # The activity is (1 - cos)^2 / 4.
    return (1.5 * time - 2 * np.sin(turn * time) / turn + np.sin(2 * turn * time) / (4 * turn)) / 4


def _draw(size, flight, speed, start, hues, radius) -> UInt8[np.ndarray, "h w 3"]:
    width, height = size
    image = Image.new("RGB", size, (201, 208, 222))
    draw = ImageDraw.Draw(image)
    for row in range(0, height, max(2, height // 12)):  # a static background of stripes
        draw.line([(0, row), (width, row)], fill=(182, 190, 206))
    place = np.abs((start + speed * flight + 1) % 2 - 1)  # reflected between 0 and 1
    for (x, y), hue in zip(place, hues, strict=True):
        centre = radius + x * (width - 2 * radius), radius + y * (height - 2 * radius)
        colour = tuple(
            round(255 * (0.6 + 0.4 * math.cos(2 * math.pi * (hue - s)))) for s in (0, 1 / 3, 2 / 3)
        )
        draw.ellipse([c + d for d in (-radius, radius) for c in centre], fill=colour)
    return np.asarray(image)


def _sound(seconds, speed, start) -> Float[np.ndarray, " samples"]:
    """A decaying note for every touch of a border, and a soft hum."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = 1e-3 * np.sin(2 * np.pi * 110 * time)
    note = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    flight = _flight(time)
    for ball in range(len(speed)):
        pitch = 220 * 2 ** (SCALE[ball % 5] / 12 + ball // 5)
        wave = 0.2 * np.exp(-8 * note) * np.sin(2 * np.pi * pitch * note)
        for axis in range(2):
            crossings = np.floor(start[ball, axis] + speed[ball, axis] * flight)
            for touch in np.flatnonzero(np.diff(crossings)):
                piece = wave[: len(sound) - touch]
                sound[touch : touch + len(piece)] += piece
    return np.clip(sound, -1, 1).astype(np.float32)
