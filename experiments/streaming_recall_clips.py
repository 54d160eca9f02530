"""Long streams with one object at each age, and questions about these objects.

An age is the time from an object to the end of the stream, when the questions are asked. No two
objects of a stream share a colour or a sound, so every question refers to one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from omnizip_jax.testbed.clip_backgrounds import SHAPES
from omnizip_jax.testbed.clip_questions import Question, all_questions
from omnizip_jax.testbed.synthetic_clips import (
    COLOURS,
    DIFFICULTIES,
    SOUNDS,
    SPEC,
    ClipObject,
    Split,
    SyntheticClip,
    random_generator,
    render,
)

DIFFICULTY = DIFFICULTIES["long"]
OTHER_OBJECTS = 2  # objects without an age, about which nothing is asked

# Seconds from the beginning of an object's second to the end, smallest and largest.
AGES = {"2 s": (1, 4), "30 s": (20, 40), "2 min": (100, 150), "10 min": (570, 630)}
STREAM_WINDOWS = 330  # 11 minutes, a little more than the highest age

# Kinds of questions about each object, with the number of possible answers.
ANSWERS = {
    "colour of sound": len(COLOURS),
    "shape of sound": len(SHAPES),
    "sound of colour": len(SOUNDS),
    "length": 2,
    "shape of colour": len(SHAPES),
}
CHANCE = sum(1 / answers for answers in ANSWERS.values()) / len(ANSWERS)

Ages = Mapping[str, tuple[int, int]]
Objects = tuple[ClipObject, ...]


def ages_within(seconds: int, ages: Ages = AGES) -> dict[str, tuple[int, int]]:
    """The ages that fit in a stream of this length.

    Raises:
        ValueError: no age fits.
    """
    within = {name: reach for name, reach in ages.items() if reach[1] <= seconds}
    if not within:
        raise ValueError(
            f"a stream of {seconds} s is too short for any age: give at least "
            f"{min(most for _, most in ages.values())} s"
        )
    return within


def draw_stream_objects(
    random: np.random.Generator, seconds: int, ages: Ages
) -> tuple[Objects, dict[str, ClipObject]]:
    """Draw the objects of a stream, by second, and those with an age, by age."""
    times = [seconds - int(random.integers(near, far + 1)) for near, far in ages.values()]
    other = np.arange(seconds)
    for near, far in ages.values():
        other = np.setdiff1d(other, seconds - np.arange(near, far + 1))
    times += random.permutation(other)[:OTHER_OBJECTS].tolist()
    colours = random.permutation(list(COLOURS)).tolist()
    fewest, most = DIFFICULTY.silent
    silent = int(random.integers(fewest, min(most, OTHER_OBJECTS) + 1))
    with_sound = max(len(times) - silent, len(ages))  # includes all objects with an age
    sounds = [*random.permutation(SOUNDS)[:with_sound].tolist(), *[None] * silent]
    objects = [
        ClipObject(
            time, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2))
        )
        for time, colour, sound in zip(times, colours, sounds, strict=False)
    ]
    by_age = dict(zip(ages, objects, strict=False))
    return tuple(sorted(objects, key=lambda obj: obj.second)), by_age


def questions_by_age(
    objects: Objects, by_age: Mapping[str, ClipObject]
) -> list[tuple[str, Question]]:
    """One question of each kind about the object of each age, with the age."""
    questions = [q for q in all_questions(objects) if q.kind in ANSWERS]
    return [(age, q) for age, obj in by_age.items() for q in questions if q.subject == obj]


def make_stream(
    seed: int, split: Split, windows: int, ages: Ages
) -> tuple[SyntheticClip, list[tuple[str, Question]]]:
    """The stream of a seed as one clip (0.6 GB for 660 s), and the questions at its end."""
    random = random_generator(split, seed)
    objects, by_age = draw_stream_objects(random, windows * SPEC.seconds, ages)
    return render(objects, random, DIFFICULTY, windows), questions_by_age(objects, by_age)
