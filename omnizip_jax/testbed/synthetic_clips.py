"""Clips made from a seed: coloured shapes appear, and some of them sound.

A clip is cut into slots of one second, which is one grid of pictures and half a window. An event
is a shape and a sound that share a slot; a silent shape has none. Quiet windows hold no event.
Everything is drawn from (split, seed), so that no two splits can share a clip.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from omnizip_jax.config import WindowSpec
from omnizip_jax.testbed.clip_backgrounds import (
    SAMPLE_RATE,
    SHAPES,
    SIDE,
    Scene,
    din,
    film,
    shape_mask,
)

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
FPS = 2  # one picture for every sample that the model takes
SPEC = WindowSpec(grid_slots=(SIDE // CELL) ** 2)  # these pictures as they are, not enlarged
SLOTS_PER_WINDOW = 2
MARGIN = 10  # pixels by which a thing goes along with the camera, at most

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What varies in a clip; pairs are the smallest and the largest value.

    Attributes:
        events: shapes that sound.
        silent: shapes that do not.
        crowd: the most silent shapes in one slot.
        radius: of a shape, pixels.
        greys: still grey shapes, in sight for the whole clip.
        texture: contrast of the backdrop, of 255.
        hiss: standard deviation of a steady noise.
        level: amplitude of an event's sound.
        clicks: short clicks at any time.
        scene: what moves and sounds besides; None for a dark, still backdrop.
        windows: lengths of a clip, in turn by its seed.
        again: the most times that the same thing appears; where more than once, things are all over
            the clip, otherwise in about half of its windows.
    """

    events: tuple[int, int]
    silent: tuple[int, int]
    crowd: int
    radius: tuple[int, int]
    greys: tuple[int, int]
    texture: int
    hiss: float
    level: tuple[float, float]
    clicks: tuple[int, int]
    scene: Scene | None = None
    windows: tuple[int, ...] = (4,)
    again: int = 1


RESTLESS = Scene(
    shot=(2, 6),
    pan=12,
    shake=4,
    zoom=1.15,
    flicker=0.08,
    texture=50,
    movers=(0, 3),
    voices=(0, 3),
    babble=(0.01, 0.05),
    rings=(0, 4),
    ringing=(0.02, 0.08),
)
CALM = Scene(
    shot=(4, 20),
    pan=4,
    shake=1,
    zoom=1.05,
    flicker=0.03,
    texture=40,
    movers=(0, 1),
    voices=(0, 1),
    babble=(0.01, 0.03),
    rings=(0, 2),
    ringing=(0.02, 0.05),
)

# Fixed on validation clips with all tokens, before any method was measured on them.
DIFFICULTIES = {
    # One thing at a time, loud and large.
    "easy": Difficulty((2, 4), (0, 2), 1, (26, 36), (0, 2), 12, 1e-3, (0.2, 0.4), (0, 2)),
    # Crowds in the quiet windows, small shapes on a rough backdrop, sounds under a hiss: beyond
    # what the training shows.
    "hard": Difficulty((2, 4), (1, 2), 2, (10, 17), (2, 5), 54, 1.4e-2, (0.03, 0.2), (0, 6)),
    # The camera moves, and so does what it sees; sounds overlap.
    "moving": Difficulty(
        (2, 4), (0, 2), 2, (14, 24), (0, 0), 0, 4e-3, (0.1, 0.3), (0, 6), scene=RESTLESS
    ),
    # Half a minute to five minutes: the same things come and come again.
    "long": Difficulty(
        (4, 6),
        (0, 2),
        1,
        (20, 34),
        (0, 0),
        0,
        1e-3,
        (0.15, 0.4),
        (0, 6),
        scene=CALM,
        windows=(15, 30, 60, 150),
        again=6,
    ),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured shape in one slot; with a sound it is an event.

    Attributes:
        slot: second of the clip.
        sound: None for a silent shape.
        long: whether the sound is a long one.
    """

    slot: int
    colour: str
    shape: str
    sound: str | None = None
    long: bool = False


@dataclasses.dataclass(frozen=True)
class TestClip:
    """A clip and the truth about it.

    Attributes:
        things: by slot. Those that share a colour, or a sound, are the same thing again.
        frames: two pictures for each slot, RGB.
        waveform: mono at 16 kHz.
        cells: the thing that covers each token of each slot, -1 for none.
        active: the thing that is heard in each audio token (40 ms), -1 for none.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    things: tuple[Thing, ...]
    frames: UInt8[np.ndarray, "T 168 168 3"]
    waveform: Float[np.ndarray, " S"]
    cells: Int[np.ndarray, "slots 36"]
    active: Int[np.ndarray, "slots 25"]

    @property
    def events(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.sound)

    @property
    def arrays(self) -> tuple[np.ndarray, float, np.ndarray, int]:
        """What ``omnizip_jax.generate`` takes."""
        return self.frames, FPS, self.waveform, SAMPLE_RATE

    def write(self, path: str | Path) -> Path:
        """Write an mp4 (H.264, AAC at 44.1 kHz); returns its path."""
        repeat, rate = 5, 44_100  # pictures a player can show, and a rate that needs resampling
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
    """Everything random about one clip; different for every split and seed.

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
) -> TestClip:
    """The clip of a seed; the same arguments give the same clip.

    Args:
        windows: of 2 s; by default one of the difficulty's lengths.
    """
    random = random_generator(split, seed)
    windows = windows or clip_windows(seed, difficulty)
    return render(draw_things(random, difficulty, windows), random, difficulty, windows)


def clip_windows(seed: int, difficulty: Difficulty) -> int:
    """How many windows the clip of a seed has by default."""
    return difficulty.windows[seed % len(difficulty.windows)]


def draw_things(
    random: np.random.Generator, difficulty: Difficulty, windows: int
) -> tuple[Thing, ...]:
    """Draw what happens: events in about half of the windows, silent shapes in free slots."""
    if difficulty.again > 1:
        return _draw_recurring(random, difficulty, windows * SLOTS_PER_WINDOW)
    events = random.integers(difficulty.events[0], difficulty.events[1] + 1)
    events = min(events, windows * SLOTS_PER_WINDOW)
    silent = random.integers(difficulty.silent[0], difficulty.silent[1] + 1)
    busy = max(windows // 2, -(-events // SLOTS_PER_WINDOW))
    places = random.permutation(windows)[:busy, None] * SLOTS_PER_WINDOW + np.arange(2)
    slots = random.permutation(places.ravel())[:events].tolist()
    free = np.setdiff1d(np.arange(windows * SLOTS_PER_WINDOW), slots)
    silent = min(silent, len(COLOURS) - events)  # no two things share a colour
    free = random.permutation(np.repeat(free, difficulty.crowd))[:silent].tolist()
    colours = random.permutation(list(COLOURS))[: events + len(free)].tolist()
    sounds = random.permutation(SOUNDS)[:events].tolist()
    things = [
        Thing(slot, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2)))
        for slot, colour, sound in zip(
            slots + free, colours, sounds + [None] * len(free), strict=True
        )
    ]
    return tuple(sorted(things, key=lambda thing: thing.slot))


def _draw_recurring(
    random: np.random.Generator, difficulty: Difficulty, slots: int
) -> tuple[Thing, ...]:
    """Every thing in a slot of its own, some of them again; at most half of the slots are busy."""
    events = random.integers(difficulty.events[0], difficulty.events[1] + 1)
    silent = random.integers(difficulty.silent[0], difficulty.silent[1] + 1)
    room = max(slots // 2, 1)
    colours = random.permutation(list(COLOURS)).tolist()
    sounds = [*random.permutation(SOUNDS)[:events].tolist(), *[None] * silent]
    cast = [
        Thing(0, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2)))
        for colour, sound in zip(colours, sounds, strict=False)
    ][:room]
    # Half of them come once; others more often, where there is time.
    most = max(1, min(difficulty.again, slots // 10))
    times = random.integers(1, most + 1, len(cast))
    times[random.random(len(cast)) < 0.5] = 1
    more = random.permutation(np.repeat(np.arange(len(cast)), times - 1))
    who = [*range(len(cast)), *more[: room - len(cast)].tolist()]
    places = random.permutation(slots)[: len(who)].tolist()
    things = [dataclasses.replace(cast[i], slot=slot) for i, slot in zip(who, places, strict=True)]
    return tuple(sorted(things, key=lambda thing: thing.slot))


def render(
    things: tuple[Thing, ...],
    random: np.random.Generator,
    difficulty: Difficulty,
    windows: int,
) -> TestClip:
    """Draw the pictures of these things and play their sounds."""
    slots = windows * SLOTS_PER_WINDOW
    frames, cells = _pictures(things, random, difficulty, slots)
    waveform, active = _sounds(things, random, difficulty, slots)
    return TestClip(things, frames, waveform, cells, active)


def _pictures(things, random, difficulty, slots):
    moved = np.zeros((slots * 2, 2))
    if difficulty.scene:
        frames, moved = film(random, difficulty.scene, slots * FPS, FPS)
    else:
        frames = _still(random, difficulty, slots)
    cells = np.full((slots, (SIDE // CELL) ** 2), -1)
    taken: dict[int, list[tuple[int, int]]] = {}
    for index, thing in enumerate(things):
        radius = random.integers(difficulty.radius[0], difficulty.radius[1] + 1)
        centre = random.integers(radius + 4, SIDE - radius - 4, 2)
        while any(
            np.abs(centre - other).max() < 2 * radius + 8 for other in taken.get(thing.slot, [])
        ):
            centre = random.integers(radius + 4, SIDE - radius - 4, 2)
        taken.setdefault(thing.slot, []).append(centre)
        cover = np.zeros((SIDE, SIDE))
        sway = np.clip(np.round(moved[2 * thing.slot + 1] / 2), -MARGIN, MARGIN).astype(int)
        for frame, way in ((2 * thing.slot, -sway), (2 * thing.slot + 1, sway)):
            mask = shape_mask(thing.shape, centre + random.integers(-4, 5, 2) + way, radius)
            colour = np.array(COLOURS[thing.colour]) + random.integers(-20, 21, 3)
            frames[frame][mask] = np.clip(colour, 0, 255)
            cover += mask / 2
        share = cover.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL).mean((1, 3)).ravel()
        cells[thing.slot, share > 0.15] = index
    return frames, cells


def _still(random, difficulty, slots):
    """The same picture throughout: a grey backdrop with grey shapes."""
    side = SIDE // 12
    shade = random.integers(40, 100)
    backdrop = random.integers(-difficulty.texture, difficulty.texture + 1, (12, 12, 1))
    backdrop = np.repeat(shade + backdrop.repeat(side, 0).repeat(side, 1), 3, axis=2)
    for _ in range(random.integers(difficulty.greys[0], difficulty.greys[1] + 1)):
        radius = random.integers(difficulty.radius[0], difficulty.radius[1] + 1)
        centre = random.integers(radius, SIDE - radius, 2)
        mask = shape_mask(str(random.choice(SHAPES)), centre, radius)
        backdrop[mask] = random.integers(110, 190)
    return np.repeat(np.clip(backdrop, 0, 255).astype(np.uint8)[None], slots * 2, axis=0)


def _sounds(things, random, difficulty, slots):
    wave = difficulty.hiss * random.standard_normal(slots * SAMPLE_RATE)
    if difficulty.scene:
        wave += din(random, difficulty.scene, len(wave))
    active = np.full((slots, 25), -1)
    for index, thing in enumerate(things):
        if thing.sound is None:
            continue
        seconds = random.uniform(0.75, 0.9) if thing.long else random.uniform(0.25, 0.4)
        start = random.uniform(0.03, 0.97 - seconds)
        piece = _tone(thing.sound, seconds, random) * random.uniform(*difficulty.level)
        first = round((thing.slot + start) * SAMPLE_RATE)
        wave[first : first + len(piece)] += piece
        active[thing.slot, int(start * 25) : int((start + seconds) * 25) + 1] = index
    for _ in range(random.integers(difficulty.clicks[0], difficulty.clicks[1] + 1)):
        first = random.integers(len(wave) - 80)
        wave[first : first + 80] += 0.05 * random.standard_normal(80)
    return np.clip(wave, -1, 1).astype(np.float32), active


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
