"""Synthetic clips with known content: coloured shapes appear, some of them with a sound.

Each object is visible for one second, which is one grid of frames and half a window. Everything is
drawn from (split, seed), so two splits never share a clip.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from omnizip_jax.testbed.clip_backgrounds import (
    SAMPLE_RATE,
    SHAPES,
    SIDE,
    Background,
    background_audio,
    background_frames,
    shape_mask,
)
from omnizip_jax.window_spec import WindowSpec

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 40),
    "purple": (170, 50, 200),
    "cyan": (50, 210, 220),
}
SOUNDS = ("low", "high", "rising", "falling", "noise", "trill")

CELL = 28  # pixels along the side of a token
FPS = 2  # the rate at which the model samples frames
SPEC = WindowSpec(grid_slots=(SIDE // CELL) ** 2)  # frames are not enlarged
MAX_SHIFT = 10  # pixels by which an object follows the camera, at most

# Of the demo and the notebooks: clips on which methods differ; docs/accuracy.md has their accuracy.
CLIP_SEED = 0
STREAM_SEED = 4
STREAM_WINDOWS = 32
OPENING_SECONDS = 5 * SPEC.seconds  # the part of the stream that later questions are about

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Parameters of a clip; pairs are the smallest and the largest value.

    Attributes:
        events: number of objects with a sound.
        silent: number of objects without one.
        max_silent: silent objects in one second, at most.
        radius: of a shape, pixels.
        grey_shapes: number of static grey shapes, visible for the whole clip.
        contrast: of the static background, of 255.
        noise: standard deviation of constant noise.
        amplitude: of an object's sound.
        clicks: number of short clicks at random times.
        background: moving background with audio of its own; None for a dark, static one.
        windows: lengths of clips; the seed selects one.
        max_occurrences: how often the same object may appear. If more than once, objects are spread
            over the whole clip, otherwise over about half of its windows.
    """

    events: tuple[int, int]
    silent: tuple[int, int]
    max_silent: int
    radius: tuple[int, int]
    grey_shapes: tuple[int, int]
    contrast: int
    noise: float
    amplitude: tuple[float, float]
    clicks: tuple[int, int]
    background: Background | None = None
    windows: tuple[int, ...] = (4,)
    max_occurrences: int = 1


def _parameters(kind: type, table: dict[str, Any]) -> Any:
    if "background" in table:
        table["background"] = _parameters(Background, table["background"])
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})


_TABLES = tomllib.loads(Path(__file__).with_name("difficulties.toml").read_text())
DIFFICULTIES: dict[str, Difficulty] = {
    name: _parameters(Difficulty, table) for name, table in _TABLES.items()
}


@dataclasses.dataclass(frozen=True)
class ClipObject:
    """A coloured shape visible for one second, with or without a sound.

    Attributes:
        second: of the clip, from 0.
        sound: None for a silent object.
        long: whether the sound is long.
    """

    second: int
    colour: str
    shape: str
    sound: str | None = None
    long: bool = False


@dataclasses.dataclass(frozen=True)
class SyntheticClip:
    """A clip with its content.

    Attributes:
        objects: by second. Objects that share a colour or a sound are the same object again.
        frames: RGB, two per second.
        waveform: mono at 16 kHz.
        video_objects: index of the object that covers each video token of each second, or -1.
        audio_objects: index of the object that sounds in each audio token (40 ms), or -1.
    """

    objects: tuple[ClipObject, ...]
    frames: UInt8[np.ndarray, "T 168 168 3"]
    waveform: Float[np.ndarray, " S"]
    video_objects: Int[np.ndarray, "seconds 36"]
    audio_objects: Int[np.ndarray, "seconds 25"]

    @property
    def events(self) -> tuple[ClipObject, ...]:
        return tuple(obj for obj in self.objects if obj.sound)

    @property
    def arrays(self) -> tuple[np.ndarray, float, np.ndarray, int]:
        """The clip as ``omnizip_jax.generate`` accepts it: frames, rate, samples, rate."""
        return self.frames, FPS, self.waveform, SAMPLE_RATE

    def write(self, path: str | Path) -> Path:
        """Write an mp4 (H.264, AAC at 44.1 kHz); returns its path."""
        repeat, rate = 5, 44_100  # a frame rate that players accept, and audio to be resampled
        with av.open(str(path), "w", format="mp4") as container:
            picture = container.add_stream("libx264", rate=FPS * repeat)
            picture.width = picture.height = SIDE
            picture.pix_fmt, picture.options = "yuv420p", {"preset": "veryfast", "crf": "20"}
            sound = container.add_stream("aac", rate=rate, layout="mono")
            for image in np.repeat(self.frames, repeat, axis=0):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(picture.encode(frame))
            container.mux(picture.encode())
            block = av.AudioFrame.from_ndarray(self.waveform[None], "fltp", "mono")
            block.sample_rate, block.pts = SAMPLE_RATE, 0
            resampler = av.AudioResampler("fltp", "mono", rate)
            for piece in [*resampler.resample(block), *resampler.resample(None)]:
                container.mux(sound.encode(piece))
            container.mux(sound.encode())
        return Path(path)


def random_generator(split: Split, seed: int) -> np.random.Generator:
    """The random generator of one clip, different for every split and seed.

    Raises:
        ValueError: an unknown split or a negative seed.
    """
    if split not in SPLITS or seed < 0:
        raise ValueError(
            f"expected a split of {', '.join(SPLITS)} and a seed from 0, got {split!r} and {seed}"
        )
    return np.random.default_rng([SPLITS.index(split), seed])


def make_clip(
    seed: int,
    split: Split = "test",
    difficulty: Difficulty = DIFFICULTIES["easy"],
    windows: int | None = None,
) -> SyntheticClip:
    """The clip of a seed; the same arguments give the same clip.

    Args:
        windows: of 2 s; by default one of the difficulty's lengths.
    """
    random = random_generator(split, seed)
    windows = windows or default_windows(seed, difficulty)
    return render(draw_objects(random, difficulty, windows), random, difficulty, windows)


def default_windows(seed: int, difficulty: Difficulty) -> int:
    """Default length of the clip of a seed, in windows."""
    return difficulty.windows[seed % len(difficulty.windows)]


def draw_objects(
    random: np.random.Generator, difficulty: Difficulty, windows: int
) -> tuple[ClipObject, ...]:
    """Draw objects: those with a sound in about half of the windows, silent ones elsewhere."""
    seconds = windows * SPEC.seconds
    events, silent = (
        random.integers(least, most + 1) for least, most in (difficulty.events, difficulty.silent)
    )
    if difficulty.max_occurrences > 1:
        return _draw_recurring(random, events, silent, difficulty.max_occurrences, seconds)
    events = min(events, seconds)
    busy = max(windows // 2, -(-events // SPEC.seconds))
    places = random.permutation(windows)[:busy, None] * SPEC.seconds + np.arange(2)
    taken = random.permutation(places.ravel())[:events].tolist()
    free = np.setdiff1d(np.arange(seconds), taken)
    silent = min(silent, len(COLOURS) - events)  # no two objects share a colour
    free = random.permutation(np.repeat(free, difficulty.max_silent))[:silent].tolist()
    colours = random.permutation(list(COLOURS))[: events + len(free)].tolist()
    sounds = random.permutation(SOUNDS)[:events].tolist()
    objects = [
        ClipObject(
            second, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2))
        )
        for second, colour, sound in zip(
            taken + free, colours, sounds + [None] * len(free), strict=True
        )
    ]
    return tuple(sorted(objects, key=lambda obj: obj.second))


def _draw_recurring(random, events, silent, max_occurrences, seconds) -> tuple[ClipObject, ...]:
    """Draw one object per second in at most half of the seconds; some appear several times."""
    limit = max(seconds // 2, 1)
    colours = random.permutation(list(COLOURS)).tolist()
    sounds = [*random.permutation(SOUNDS)[:events].tolist(), *[None] * silent]
    cast = [
        ClipObject(0, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2)))
        for colour, sound in zip(colours, sounds, strict=False)
    ][:limit]
    # Half of them appear once, the others more often if the clip is long enough.
    most = max(1, min(max_occurrences, seconds // 10))
    times = random.integers(1, most + 1, len(cast))
    times[random.random(len(cast)) < 0.5] = 1
    more = random.permutation(np.repeat(np.arange(len(cast)), times - 1))
    who = [*range(len(cast)), *more[: limit - len(cast)].tolist()]
    places = random.permutation(seconds)[: len(who)].tolist()
    objects = [
        dataclasses.replace(cast[i], second=second) for i, second in zip(who, places, strict=True)
    ]
    return tuple(sorted(objects, key=lambda obj: obj.second))


def render(
    objects: tuple[ClipObject, ...],
    random: np.random.Generator,
    difficulty: Difficulty,
    windows: int,
) -> SyntheticClip:
    """Render frames and audio of these objects."""
    seconds = windows * SPEC.seconds
    frames, video_objects = _frames(objects, random, difficulty, seconds)
    waveform, audio_objects = _audio(objects, random, difficulty, seconds)
    return SyntheticClip(objects, frames, waveform, video_objects, audio_objects)


def _frames(objects, random, difficulty, seconds):
    moved = np.zeros((seconds * FPS, 2))
    if difficulty.background:
        frames, moved = background_frames(random, difficulty.background, seconds * FPS, FPS)
    else:
        frames = _static_background(random, difficulty, seconds)
    video_objects = np.full((seconds, (SIDE // CELL) ** 2), -1)
    taken: dict[int, list[tuple[int, int]]] = {}
    for index, obj in enumerate(objects):
        radius = random.integers(difficulty.radius[0], difficulty.radius[1] + 1)
        centre = random.integers(radius + 4, SIDE - radius - 4, 2)
        while any(
            np.abs(centre - other).max() < 2 * radius + 8 for other in taken.get(obj.second, [])
        ):
            centre = random.integers(radius + 4, SIDE - radius - 4, 2)
        taken.setdefault(obj.second, []).append(centre)
        cover = np.zeros((SIDE, SIDE))
        shift = np.clip(np.round(moved[2 * obj.second + 1] / 2), -MAX_SHIFT, MAX_SHIFT).astype(int)
        for frame, offset in ((2 * obj.second, -shift), (2 * obj.second + 1, shift)):
            mask = shape_mask(obj.shape, centre + random.integers(-4, 5, 2) + offset, radius)
            colour = np.array(COLOURS[obj.colour]) + random.integers(-20, 21, 3)
            frames[frame][mask] = np.clip(colour, 0, 255)
            cover += mask / 2
        share = cover.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL).mean((1, 3)).ravel()
        video_objects[obj.second, share > 0.15] = index
    return frames, video_objects


def _static_background(random, difficulty, seconds):
    """Frames of a grey background with grey shapes, all the same."""
    side = SIDE // 12
    shade = random.integers(40, 100)
    frame = random.integers(-difficulty.contrast, difficulty.contrast + 1, (12, 12, 1))
    frame = np.repeat(shade + frame.repeat(side, 0).repeat(side, 1), 3, axis=2)
    for _ in range(random.integers(difficulty.grey_shapes[0], difficulty.grey_shapes[1] + 1)):
        radius = random.integers(difficulty.radius[0], difficulty.radius[1] + 1)
        centre = random.integers(radius, SIDE - radius, 2)
        mask = shape_mask(str(random.choice(SHAPES)), centre, radius)
        frame[mask] = random.integers(110, 190)
    return np.repeat(np.clip(frame, 0, 255).astype(np.uint8)[None], seconds * FPS, axis=0)


def _audio(objects, random, difficulty, seconds):
    wave = difficulty.noise * random.standard_normal(seconds * SAMPLE_RATE)
    if difficulty.background:
        wave += background_audio(random, difficulty.background, len(wave))
    audio_objects = np.full((seconds, 25), -1)
    for index, obj in enumerate(objects):
        if obj.sound is None:
            continue
        length = random.uniform(0.75, 0.9) if obj.long else random.uniform(0.25, 0.4)
        start = random.uniform(0.03, 0.97 - length)
        piece = _tone(obj.sound, length, random) * random.uniform(*difficulty.amplitude)
        first = round((obj.second + start) * SAMPLE_RATE)
        wave[first : first + len(piece)] += piece
        audio_objects[obj.second, int(start * 25) : int((start + length) * 25) + 1] = index
    for _ in range(random.integers(difficulty.clicks[0], difficulty.clicks[1] + 1)):
        first = random.integers(len(wave) - 80)
        wave[first : first + 80] += 0.05 * random.standard_normal(80)
    return np.clip(wave, -1, 1).astype(np.float32), audio_objects


def _tone(sound, seconds, random):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = random.uniform(0.93, 1.07)
    if sound == "noise":
        wave = 0.5 * random.standard_normal(len(time))
    else:
        hertz = {
            "low": np.full_like(time, 220),
            "high": np.full_like(time, 2200),
            "rising": 400 * 4 ** (time / seconds),
            "falling": 1600 / 4 ** (time / seconds),
            "trill": np.where(time * 10 % 1 < 0.5, 700, 1050),
        }[sound]
        phase = 2 * np.pi * np.cumsum(pitch * hertz) / SAMPLE_RATE
        wave = np.sin(phase) + 0.3 * np.sin(2 * phase)
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
    return wave * fade


def sample_clip(seed: int = CLIP_SEED) -> SyntheticClip:
    """A clip of eight seconds with a moving camera and background."""
    return make_clip(seed, difficulty=DIFFICULTIES["moving"])


def sample_stream(seed: int = STREAM_SEED) -> SyntheticClip:
    """A stream of 64 seconds; at least one sound occurs only in its first ten seconds."""
    random, difficulty = random_generator("test", seed), DIFFICULTIES["long"]
    objects = draw_objects(random, difficulty, STREAM_WINDOWS)
    while not any(obj.sound for obj in objects_only_in_opening(objects)):
        objects = draw_objects(random, difficulty, STREAM_WINDOWS)
    return render(objects, random, difficulty, STREAM_WINDOWS)


def objects_only_in_opening(objects: tuple[ClipObject, ...]) -> tuple[ClipObject, ...]:
    """The objects of the first ten seconds that do not appear again later."""
    later = {obj.colour for obj in objects if obj.second >= OPENING_SECONDS}
    return tuple(o for o in objects if o.second < OPENING_SECONDS and o.colour not in later)
