"""Moving backgrounds of synthetic clips and their audio, about which no question is asked.

A clip consists of shots. In each the camera pans, shakes and zooms over a textured, periodic image
while pale shapes cross the frame and the brightness flickers. The audio has voices, bells and
chords. No background has a colour or a sound that a question names.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIDE = 168  # pixels of a frame
SHAPES = ("circle", "square", "triangle", "cross")
SAMPLE_RATE = 16_000

TEXTURE_SIDE = 256  # pixels of the periodic background image
PALE, GREYISH = 0.42, 0.2  # highest saturation of the background, and of shapes that cross it
CONTROL_STEP = 32  # samples between values of pitch and loudness; divides a second
PERIOD = 512  # samples of one period of a voice
HARMONICS = np.arange(1, 17)


@dataclasses.dataclass(frozen=True)
class Background:
    """Parameters of a moving background; pairs are the smallest and the largest value.

    Attributes:
        shot_seconds: length of a shot.
        pan: camera movement from one frame to the next in pixels, at most.
        shake: standard deviation of the camera's position in pixels.
        zoom: factor per second, at most.
        flicker: standard deviation of the logarithm of the brightness.
        contrast: of the background image, of 255.
        moving_shapes: number of shapes that cross the frame.
        voices: number of voices.
        voice_amplitude: of each voice.
        bells: bells and chords in ten seconds.
        bell_amplitude: of each bell or chord.
    """

    shot_seconds: tuple[float, float]
    pan: float
    shake: float
    zoom: float
    flicker: float
    contrast: int
    moving_shapes: tuple[int, int]
    voices: tuple[int, int]
    voice_amplitude: tuple[float, float]
    bells: tuple[int, int]
    bell_amplitude: tuple[float, float]


def shape_mask(
    shape: str, centre: np.ndarray, radius: int, side: int = SIDE
) -> Bool[np.ndarray, "side side"]:
    """Mask of the pixels of a square image that a shape covers."""
    down, right = np.ogrid[:side, :side]
    down, right = down - centre[0], right - centre[1]
    if shape == "circle":
        return down**2 + right**2 <= radius**2
    inside = np.maximum(np.abs(down), np.abs(right)) <= radius
    if shape == "square":
        return inside
    if shape == "triangle":
        return inside & (2 * np.abs(right) <= down + radius)
    return inside & (np.minimum(np.abs(down), np.abs(right)) <= radius // 3)


def background_frames(
    random: np.random.Generator, background: Background, count: int, fps: int
) -> tuple[UInt8[np.ndarray, "T 168 168 3"], Float[np.ndarray, "T 2"]]:
    """Frames, and the movement of their content in pixels since the previous frame.

    The movement of the first frame of a shot is 0.
    """
    frames = np.empty((count, SIDE, SIDE, 3), np.uint8)
    moved = np.zeros((count, 2))
    start = 0
    while start < count:
        # Shots are whole seconds: the frames of a second share a token.
        length = max(fps, round(random.uniform(*background.shot_seconds)) * fps)
        length = min(length, count - start)
        shot = slice(start, start + length)
        start += length
        frames[shot], camera = _camera_frames(random, background, length, fps)
        moved[shot.start + 1 : shot.stop] = -np.diff(camera, axis=0)
        _add_moving_shapes(random, background, frames[shot], camera)
        lights = np.exp(background.flicker * random.standard_normal(length))
        for frame, light in zip(frames[shot], lights, strict=True):
            frame[:] = np.clip(np.arange(256) * light, 0, 255).astype(np.uint8)[frame]
    return frames, moved


def _camera_frames(random, background, length, fps):
    """Frames of a shot without moving shapes, and the positions of the camera."""
    texture = _texture(random, background.contrast)
    pan = random.uniform(-background.pan, background.pan, 2) * (random.random(2) < 0.6)
    shake = background.shake * random.random() * random.standard_normal((length, 2))
    camera = random.uniform(0, TEXTURE_SIDE, 2) + np.arange(length)[:, None] * pan + shake
    zoom = background.zoom ** (random.uniform(-1, 1) * np.arange(length) / fps)
    zoom = np.clip(random.uniform(0.8, 1.2) * zoom, 0.5, 2)
    pixel = np.arange(SIDE) - SIDE / 2
    rows, columns = (
        (camera[:, i, None] + pixel / zoom[:, None]).astype(int) % TEXTURE_SIDE for i in (0, 1)
    )
    return np.stack([texture[r][:, c] for r, c in zip(rows, columns, strict=True)]), camera


def _texture(random, contrast) -> UInt8[np.ndarray, "256 256 3"]:
    """Two pale colours blended by smooth noise, with stripes, squares, or grain."""
    first, second = _pale(random), _pale(random)
    blend = np.clip(0.5 + 1.2 * _smooth_noise(random, (4, 8)), 0, 1)[..., None]
    rough = _smooth_noise(random, (16, 64))
    down, right = np.ogrid[:TEXTURE_SIDE, :TEXTURE_SIDE]
    stripe = TEXTURE_SIDE // int(random.choice((8, 16, 32)))  # an even number of stripes: periodic
    pattern = random.integers(3)
    if pattern < 2:
        tilt = int(random.integers(2)) * down
        other = down // stripe if pattern else 0
        rough = rough + 1.0 * (((right + tilt) // stripe + other) % 2) - 0.5
    rough = np.float32(random.uniform(0.3, 1) * contrast) * rough
    return np.clip(first + blend * (second - first) + rough[..., None], 0, 255).astype(np.uint8)


def _smooth_noise(random, sizes) -> Float[np.ndarray, "256 256"]:
    """Periodic noise between about -1 and 1; each size is the number of bumps along a side."""
    total = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.float32)
    for octave, size in enumerate(sizes, start=1):
        bumps = random.uniform(-1, 1, (size, size)).astype(np.float32) / octave
        place = np.arange(TEXTURE_SIDE, dtype=np.float32) * size / TEXTURE_SIDE
        low = place.astype(int)
        part = (place - low)[:, None]
        for _ in range(2):  # interpolate rows, then columns
            bumps = (bumps[low] * (1 - part) + bumps[(low + 1) % size] * part).T
        total = total + bumps
    return total


def _pale(random, most=PALE) -> Float[np.ndarray, " 3"]:
    hue, saturation, value = random.random(), random.uniform(0.1, most), random.uniform(0.25, 0.75)
    return np.float32(255) * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _add_moving_shapes(random, background, frames, camera) -> None:
    """Draw shapes that move relative to the background."""
    for _ in range(random.integers(background.moving_shapes[0], background.moving_shapes[1] + 1)):
        radius = int(random.integers(10, 27))
        size = 2 * radius + 1
        mask = shape_mask(str(random.choice(SHAPES)), np.array([radius, radius]), radius, size)
        colour = np.clip(_pale(random, GREYISH) * random.choice((0.4, 1.3)), 0, 255)
        speed = random.uniform(-20, 20, 2)
        start = random.uniform(0, SIDE, 2)
        # A shape that leaves on one side returns on the other.
        place = start + np.arange(len(frames))[:, None] * speed - (camera - camera[0])
        corner = (place % (SIDE + size)).astype(int) - size
        for frame, (top, left) in zip(frames, corner, strict=True):
            inner = frame[max(top, 0) : top + size, max(left, 0) : left + size]
            part = mask[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]]
            inner[part] = colour


def background_audio(
    random: np.random.Generator, background: Background, samples: int
) -> Float[np.ndarray, " samples"]:
    """Audio of a background: voices, bells and chords."""
    wave = np.zeros(samples)
    for _ in range(random.integers(background.voices[0], background.voices[1] + 1)):
        wave += random.uniform(*background.voice_amplitude) * _voice(random, samples)
    seconds = samples / SAMPLE_RATE
    bells = random.integers(background.bells[0], background.bells[1] + 1) * seconds / 10
    for _ in range(int(bells + random.random())):
        piece = _bell(random) * random.uniform(*background.bell_amplitude)
        first = random.integers(samples)
        wave[first : first + len(piece)] += piece[: samples - first]
    return wave


def _voice(random, samples) -> Float[np.ndarray, " samples"]:
    """A signal like speech: harmonics of a varying pitch, in syllables, with two formants."""
    syllables = int(samples / SAMPLE_RATE * random.uniform(3, 5)) + 2
    pitch = random.uniform(90, 220) * np.exp(0.15 * random.standard_normal(syllables))
    loud = random.uniform(0.3, 1, syllables) * (random.random(syllables) < 0.75)
    place = np.linspace(0, syllables - 1, samples // CONTROL_STEP)
    at = np.arange(syllables)
    loud = (np.interp(place, at, loud) * np.sin(np.pi * place) ** 2).astype(np.float32)
    phase = np.interp(place, at, pitch).repeat(CONTROL_STEP).cumsum() / SAMPLE_RATE
    formants = random.uniform((300, 900), (800, 2200))
    hertz = pitch.mean() * HARMONICS[:, None]
    strength = sum(np.exp(-(((hertz - f) / 250) ** 2)) for f in formants) + 0.05
    angle = 2 * np.pi * HARMONICS[:, None] * np.arange(PERIOD) / PERIOD
    table = (strength * np.sin(angle + random.uniform(0, 6, hertz.shape))).sum(0)
    table = (table / np.abs(table).max()).astype(np.float32)
    return table[(phase * PERIOD).astype(np.int64) % PERIOD] * loud.repeat(CONTROL_STEP)


def _bell(random) -> Float[np.ndarray, " samples"]:
    """A bell with inharmonic partials, or a chord."""
    time = np.arange(round(random.uniform(0.4, 1.5) * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    base = random.uniform(320, 700)
    if random.random() < 0.5:
        partials, fade = (1, 2.76, 5.4), fade * np.exp(-5 * time)
    else:
        partials, fade = (1, 1.25, 1.5), fade * np.sin(np.pi * time / time[-1])
    return fade * sum(np.sin(2 * np.pi * base * p * time) for p in partials) / len(partials)
