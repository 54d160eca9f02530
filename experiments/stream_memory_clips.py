"""Long streams in which one thing happens at each age, and questions about those things.

An age is the time from an event to the end of the stream, when the questions are asked. No two
things of a stream share a colour or a sound, so that every question names one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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

LOOK = DIFFICULTIES["long"]
FURTHER = 2  # things of no age, so that not all that happened is asked about

# Seconds between the beginning of an event's second and the end, at least and at most.
AGES = {"2 s": (1, 4), "30 s": (20, 40), "2 min": (100, 150), "10 min": (570, 630)}
STREAM_WINDOWS = 330  # of a stream: 11 minutes, a little more than the highest age

# What is asked about each event, and how many answers it may have.
ASKED = {
    "colour of sound": len(COLOURS),
    "shape of sound": len(SHAPES),
    "sound of colour": len(SOUNDS),
    "length": 2,
    "shape of colour": len(SHAPES),
}
CHANCE = sum(1 / answers for answers in ASKED.values()) / len(ASKED)

Ages = Mapping[str, tuple[int, int]]


class Plot(NamedTuple):
    """What happens in a stream: the things by slot, and by age the one that is asked about."""

    objects: tuple[ClipObject, ...]
    by_age: dict[str, ClipObject]


def ages_within(seconds: int, ages: Ages = AGES) -> dict[str, tuple[int, int]]:
    """The ages that a stream of so many seconds has.

    Raises:
        ValueError: none.
    """
    within = {name: reach for name, reach in ages.items() if reach[1] <= seconds}
    if not within:
        raise ValueError(f"a stream of {seconds} s is too short: nothing in it is old enough")
    return within


def draw_plot(random: np.random.Generator, seconds: int, ages: Ages) -> Plot:
    """An event at each age, and a few things at other times, some of them silent."""
    slots = [seconds - int(random.integers(near, far + 1)) for near, far in ages.values()]
    of_no_age = np.arange(seconds)
    for near, far in ages.values():
        of_no_age = np.setdiff1d(of_no_age, seconds - np.arange(near, far + 1))
    slots += random.permutation(of_no_age)[:FURTHER].tolist()
    colours = random.permutation(list(COLOURS)).tolist()
    silent = int(random.integers(LOOK.silent[0], min(LOOK.silent[1], FURTHER) + 1))
    sounding = max(len(slots) - silent, len(ages))  # first of all the events that have an age
    sounds = [*random.permutation(SOUNDS)[:sounding].tolist(), *[None] * silent]
    objects = [
        ClipObject(
            second, colour, str(random.choice(SHAPES)), sound, bool(sound and random.integers(2))
        )
        for second, colour, sound in zip(slots, colours, sounds, strict=False)
    ]
    by_age = dict(zip(ages, objects, strict=False))
    return Plot(tuple(sorted(objects, key=lambda obj: obj.second)), by_age)


def questions_by_age(plot: Plot) -> list[tuple[str, Question]]:
    """Every question of the kinds that are asked, about the event of each age, age by age."""
    questions = [q for q in all_questions(plot.objects) if q.kind in ASKED]
    return [(age, q) for age, obj in plot.by_age.items() for q in questions if q.subject == obj]


def make_stream(
    seed: int, split: Split, windows: int, ages: Ages
) -> tuple[SyntheticClip, list[tuple[str, Question]]]:
    """The stream of a seed, and what is asked at its end; the same arguments give the same.

    660 s take 0.6 GB while they are drawn, so a stream is one clip.
    """
    random = random_generator(split, seed)
    plot = draw_plot(random, windows * SPEC.seconds, ages)
    return render(plot.objects, random, LOOK, windows), questions_by_age(plot)
