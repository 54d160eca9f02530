"""What moves and sounds behind the things of a clip, and is not asked about.

A clip is filmed in shots. Each has a textured, coloured backdrop, larger than the picture and
without an end, over which the camera pans, shakes and zooms; pale shapes move across it, and the
light flickers. Voices babble, bells and chords ring. Nothing here has a colour or a sound that
questions name.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIDE = 168  # pixels of a picture
SHAPES = ("circle", "square", "triangle", "cross")
SAMPLE_RATE = 16_000

WORLD = 256  # pixels of a backdrop, which repeats
PALE, GREYISH = 0.42, 0.2  # highest saturation of a backdrop, and of what moves before it
SLOW = 32  # samples; divides a second
TABLE = 512  # samples of one period of a voice
HARMONICS = np.arange(1, 17)


@dataclasses.dataclass(frozen=True)
class Scene:
    """How restless a clip is; pairs are the smallest and the largest value.

    Attributes:
        shot: seconds from one cut to the next.
        pan: pixels by which the camera moves on from one picture to the next, at most.
        shake: pixels by which it trembles, standard deviation.
        zoom: factor by which it nears or withdraws in a second, at most.
        flicker: of the light, standard deviation of its logarithm.
        texture: contrast of a backdrop, of 255.
        movers: shapes that cross the picture.
        voices: that babble.
        babble: amplitude of each.
        rings: bells and chords in ten seconds.
        ringing: amplitude of each.
    """

    shot: tuple[float, float]
    pan: float
    shake: float
    zoom: float
    flicker: float
    texture: int
    movers: tuple[int, int]
    voices: tuple[int, int]
    babble: tuple[float, float]
    rings: tuple[int, int]
    ringing: tuple[float, float]


def shape_mask(
    shape: str, centre: np.ndarray, radius: int, side: int = SIDE
) -> Bool[np.ndarray, "side side"]:
    """The pixels of a square picture that a shape covers."""
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


def film(
    random: np.random.Generator, scene: Scene, count: int, fps: int
) -> tuple[UInt8[np.ndarray, "T 168 168 3"], Float[np.ndarray, "T 2"]]:
    """Pictures of a scene, and how far what is in them moved since the picture before.

    The first picture after a cut did not move.
    """
    frames = np.empty((count, SIDE, SIDE, 3), np.uint8)
    moved = np.zeros((count, 2))
    for shot in _shots(random, scene, count, fps):
        length = shot.stop - shot.start
        frames[shot], way = _backdrop(random, scene, length, fps)
        moved[shot.start + 1 : shot.stop] = -np.diff(way, axis=0)
        _add_movers(random, scene, frames[shot], way)
        lights = np.exp(scene.flicker * random.standard_normal(length))
        for frame, light in zip(frames[shot], lights, strict=True):
            frame[:] = np.clip(np.arange(256) * light, 0, 255).astype(np.uint8)[frame]
    return frames, moved


def _shots(random, scene, count, fps) -> Iterator[slice]:
    start = 0
    while start < count:
        # A cut lies between two seconds: the pictures of a second share a token.
        length = max(fps, round(random.uniform(*scene.shot)) * fps)
        yield slice(start, min(start + length, count))
        start += length


def _backdrop(random, scene, length, fps):
    """The pictures of a shot without what moves in it, and the way of the camera."""
    world = _world(random, scene.texture)
    pan = random.uniform(-scene.pan, scene.pan, 2) * (random.random(2) < 0.6)
    shake = scene.shake * random.random() * random.standard_normal((length, 2))
    way = random.uniform(0, WORLD, 2) + np.arange(length)[:, None] * pan + shake
    near = scene.zoom ** (random.uniform(-1, 1) * np.arange(length) / fps)
    near = np.clip(random.uniform(0.8, 1.2) * near, 0.5, 2)
    pixel = np.arange(SIDE) - SIDE / 2
    rows, columns = ((way[:, i, None] + pixel / near[:, None]).astype(int) % WORLD for i in (0, 1))
    return np.stack([world[r][:, c] for r, c in zip(rows, columns, strict=True)]), way


def _world(random, texture) -> UInt8[np.ndarray, "256 256 3"]:
    """Two pale colours, blended by clouds, under stripes, squares, or grain."""
    first, second = _pale(random), _pale(random)
    blend = np.clip(0.5 + 1.2 * _clouds(random, (4, 8)), 0, 1)[..., None]
    rough = _clouds(random, (16, 64))
    down, right = np.ogrid[:WORLD, :WORLD]
    stripe = WORLD // int(random.choice((8, 16, 32)))  # a whole number of pairs, so that it repeats
    pattern = random.integers(3)
    if pattern < 2:
        tilt = int(random.integers(2)) * down
        other = down // stripe if pattern else 0
        rough = rough + 1.0 * (((right + tilt) // stripe + other) % 2) - 0.5
    rough = np.float32(random.uniform(0.3, 1) * texture) * rough
    return np.clip(first + blend * (second - first) + rough[..., None], 0, 255).astype(np.uint8)


def _clouds(random, sizes) -> Float[np.ndarray, "256 256"]:
    """Smooth noise that repeats, between about -1 and 1; each size is a number of bumps."""
    total = np.zeros((WORLD, WORLD), np.float32)
    for octave, size in enumerate(sizes, start=1):
        bumps = random.uniform(-1, 1, (size, size)).astype(np.float32) / octave
        for _ in range(2):  # along rows, then along columns
            bumps = _stretch(bumps).T
        total = total + bumps
    return total


def _stretch(bumps: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "256 M"]:
    """Interpolate rows of a picture that repeats."""
    place = np.arange(WORLD, dtype=np.float32) * len(bumps) / WORLD
    low = place.astype(int)
    part = (place - low)[:, None]
    return bumps[low] * (1 - part) + bumps[(low + 1) % len(bumps)] * part


def _pale(random, most=PALE) -> Float[np.ndarray, " 3"]:
    hue, saturation, value = random.random(), random.uniform(0.1, most), random.uniform(0.25, 0.75)
    return np.float32(255) * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _add_movers(random, scene, frames, way) -> None:
    """Draw shapes that cross the picture, and move with the backdrop besides."""
    for _ in range(random.integers(scene.movers[0], scene.movers[1] + 1)):
        radius = int(random.integers(10, 27))
        size = 2 * radius + 1
        mask = shape_mask(str(random.choice(SHAPES)), np.array([radius, radius]), radius, size)
        colour = np.clip(_pale(random, GREYISH) * random.choice((0.4, 1.3)), 0, 255)
        speed = random.uniform(-20, 20, 2)
        start = random.uniform(0, SIDE, 2)
        # It leaves on one side, and comes again on the other one.
        place = start + np.arange(len(frames))[:, None] * speed - (way - way[0])
        corner = (place % (SIDE + size)).astype(int) - size
        for frame, (top, left) in zip(frames, corner, strict=True):
            inner = frame[max(top, 0) : top + size, max(left, 0) : left + size]
            part = mask[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]]
            inner[part] = colour


def din(random: np.random.Generator, scene: Scene, samples: int) -> Float[np.ndarray, " samples"]:
    """Babble, bells and chords."""
    wave = np.zeros(samples)
    for _ in range(random.integers(scene.voices[0], scene.voices[1] + 1)):
        wave += random.uniform(*scene.babble) * _voice(random, samples)
    seconds = samples / SAMPLE_RATE
    rings = random.integers(scene.rings[0], scene.rings[1] + 1) * seconds / 10
    for _ in range(int(rings + random.random())):
        piece = _ring(random) * random.uniform(*scene.ringing)
        first = random.integers(samples)
        wave[first : first + len(piece)] += piece[: samples - first]
    return wave


def _voice(random, samples) -> Float[np.ndarray, " samples"]:
    """Something like speech: a buzz of changing pitch, in syllables, through two formants."""
    syllables = int(samples / SAMPLE_RATE * random.uniform(3, 5)) + 2
    pitch = random.uniform(90, 220) * np.exp(0.15 * random.standard_normal(syllables))
    loud = random.uniform(0.3, 1, syllables) * (random.random(syllables) < 0.75)
    # Pitch and loudness change slowly: once in so many samples is enough.
    place = np.linspace(0, syllables - 1, samples // SLOW)
    at = np.arange(syllables)
    loud = (np.interp(place, at, loud) * np.sin(np.pi * place) ** 2).astype(np.float32)
    turns = np.interp(place, at, pitch).repeat(SLOW).cumsum() / SAMPLE_RATE
    formants = random.uniform((300, 900), (800, 2200))
    hertz = pitch.mean() * HARMONICS[:, None]
    strength = sum(np.exp(-(((hertz - f) / 250) ** 2)) for f in formants) + 0.05
    angle = 2 * np.pi * HARMONICS[:, None] * np.arange(TABLE) / TABLE
    table = (strength * np.sin(angle + random.uniform(0, 6, hertz.shape))).sum(0)
    table = (table / np.abs(table).max()).astype(np.float32)
    return table[(turns * TABLE).astype(np.int64) % TABLE] * loud.repeat(SLOW)


def _ring(random) -> Float[np.ndarray, " samples"]:
    """A bell, whose partials are out of tune, or a soft chord."""
    time = np.arange(round(random.uniform(0.4, 1.5) * SAMPLE_RATE)) / SAMPLE_RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    base = random.uniform(320, 700)
    if random.random() < 0.5:
        partials, fade = (1, 2.76, 5.4), fade * np.exp(-5 * time)
    else:
        partials, fade = (1, 1.25, 1.5), fade * np.sin(np.pi * time / time[-1])
    return fade * sum(np.sin(2 * np.pi * base * p * time) for p in partials) / len(partials)
