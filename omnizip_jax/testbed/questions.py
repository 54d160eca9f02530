"""Questions about a test clip, in words, with answers of one word.

Three families: ``audio-visual`` needs sound and picture of the same moment, ``audio`` and
``video`` need one of them. Of a long clip, in which the same things come again, it is also asked
what came when, in which order, and how often.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from itertools import pairwise
from typing import Literal

import numpy as np

from omnizip_jax.testbed.clips import COLOURS, SOUNDS, Thing

Family = Literal["audio-visual", "audio", "video"]
FAMILIES: tuple[Family, ...] = ("audio-visual", "audio", "video")

KINDS = (
    "colour of sound",
    "shape of sound",
    "sound of colour",
    "silent",
    "colour of first or last",
    "length",
    "heard",
    "count",
    "first",
    "last",
    "next",
    "times",
    "heard when",
    "count when",
    "shape of colour",
    "seen",
    "seen when",
)
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
# How a clip is cut: seconds in words. What begins within a tenth of a cut is not asked about.
SPANS = {10: "ten seconds", 30: "thirty seconds", 60: "minute", 120: "two minutes"}
NAMES = {sound: f"{sound} tone" for sound in SOUNDS[:4]} | {"noise": "noise", "trill": "trill"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its true answer.

    Attributes:
        thing: that decides the answer, the last time it appears; None where it takes more than one
            thing, or none.
    """

    family: Family
    kind: str
    text: str
    answer: str
    thing: Thing | None = None


def all_questions(
    things: tuple[Thing, ...], family: Family | None = None, seconds: int | None = None
) -> list[Question]:
    """Every question that can be asked about a clip, or those of one family.

    Args:
        things: by slot.
        seconds: of the clip; with it come questions about time, order and number.
    """
    out = [*_about_things(things), *(_about_times(things, seconds) if seconds else ())]
    # The same thing again makes the same question again; the last time counts.
    different = {question.text: question for question in out}
    return [question for question in different.values() if family in (None, question.family)]


def _about_things(things: tuple[Thing, ...]) -> list[Question]:
    events = sorted((thing for thing in things if thing.sound), key=lambda thing: thing.slot)
    shown = {thing.colour for thing in things}
    heard = {thing.sound for thing in events}
    out = []

    def add(family: Family, kind: str, text: str, answer: str, thing: Thing | None = None) -> None:
        out.append(Question(family, kind, text, answer, thing))

    for event in events:
        name = NAMES[event.sound or ""]
        add(
            "audio-visual",
            "colour of sound",
            f"Which colour was seen during the {name}?",
            event.colour,
            event,
        )
        add(
            "audio-visual",
            "shape of sound",
            f"Which shape was seen during the {name}?",
            event.shape,
            event,
        )
        add(
            "audio-visual",
            "sound of colour",
            f"Which sound was heard with the {event.colour} shape?",
            str(event.sound),
            event,
        )
        length = "long" if event.long else "short"
        add("audio", "length", f"Was the {name} short or long?", length, event)
    for thing in things:
        silent = "no" if thing.sound else "yes"
        add("audio-visual", "silent", f"Was the {thing.colour} shape silent?", silent, thing)
        text = f"Which shape was {thing.colour}?"
        add("video", "shape of colour", text, thing.shape, thing)
    for sound in SOUNDS:
        answer = "yes" if sound in heard else "no"
        add("audio", "heard", f"Was there a {NAMES[sound]}?", answer)
    for colour in COLOURS:
        answer = "yes" if colour in shown else "no"
        add("video", "seen", f"Was there a {colour} shape?", answer)
    if len(events) < len(NUMBERS):
        add("audio", "count", "How many sounds were there?", NUMBERS[len(events)])
    if events:
        add("audio", "first", "Which sound came first?", str(events[0].sound))
    return out


def _about_times(things: tuple[Thing, ...], seconds: int) -> list[Question]:
    events = [thing for thing in things if thing.sound]
    out = []

    def add(family: Family, kind: str, text: str, answer: str, thing: Thing | None = None) -> None:
        out.append(Question(family, kind, text, answer, thing))

    if events:
        add("audio", "last", "Which sound came last?", str(events[-1].sound), events[-1])
        for name, thing in (("first", events[0]), ("last", events[-1])):
            text = f"Which colour was seen during the {name} sound?"
            add("audio-visual", "colour of first or last", text, thing.colour, thing)
    often = Counter(event.sound for event in events)
    for one, following in pairwise(events):
        if often[one.sound] == 1:
            text = f"Which sound came after the {NAMES[str(one.sound)]}?"
            add("audio", "next", text, str(following.sound), following)
    if len(often) < len(events):
        for sound, times in often.items():
            text = f"How many times was the {NAMES[str(sound)]} heard?"
            add("audio", "times", text, NUMBERS[times])
    for span, words in SPANS.items():
        if span * 1.5 > seconds:
            continue
        for end, start, stop in (("first", 0, span), ("last", seconds - span, seconds)):
            inner = stop if end == "first" else start

            def near(thing: Thing, cut: int = inner, span: int = span) -> bool:
                return abs(thing.slot + 0.5 - cut) < span / 10 + 0.5

            inside = [thing for thing in things if start <= thing.slot < stop]
            when = f"in the {end} {words}"
            close = [thing for thing in things if near(thing)]
            for sound in SOUNDS:
                if all(thing.sound != sound for thing in close):
                    answer = "yes" if any(thing.sound == sound for thing in inside) else "no"
                    add("audio", "heard when", f"Was there a {NAMES[sound]} {when}?", answer)
            for colour in COLOURS:
                if all(thing.colour != colour for thing in close):
                    answer = "yes" if any(thing.colour == colour for thing in inside) else "no"
                    add("video", "seen when", f"Was there a {colour} shape {when}?", answer)
            if not any(thing.sound for thing in close):
                number = NUMBERS[len({thing.sound for thing in inside if thing.sound})]
                add("audio", "count when", f"How many different sounds were there {when}?", number)
    return out


def draw_questions(
    things: tuple[Thing, ...],
    random: np.random.Generator,
    count: int,
    only: Collection[str] | None = None,
    seconds: int | None = None,
) -> list[Question]:
    """Draw different questions: every kind as likely, and every answer to it.

    Args:
        only: the kinds to draw from; None for all.
        seconds: as for ``all_questions``.

    Raises:
        ValueError: more questions than there are kinds that can be asked about the clip.
    """
    kinds: dict[str, dict[str, list[Question]]] = {}
    for question in all_questions(things, seconds=seconds):
        if only is None or question.kind in only:
            kinds.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
    if count > len(kinds):
        raise ValueError(f"this clip allows for {len(kinds)} kinds of questions, not {count}")
    chosen = random.permutation(list(kinds))[:count]
    out = []
    for kind in chosen:
        answers = list(kinds[kind].values())
        same = answers[random.integers(len(answers))]
        out.append(same[random.integers(len(same))])
    return out


def draw_question(
    things: tuple[Thing, ...],
    random: np.random.Generator,
    family: Family,
    seconds: int | None = None,
) -> Question:
    """Draw one question of a family.

    Raises:
        ValueError: none of that family can be asked about the clip.
    """
    kinds = {question.kind for question in all_questions(things, family, seconds)}
    if not kinds:
        raise ValueError(f"no question of the family {family!r} can be asked about this clip")
    return draw_questions(things, random, 1, kinds, seconds)[0]
