"""Questions about a test clip, in words, with answers of one word.

Three families: ``audio-visual`` needs sound and picture of the same moment, ``audio`` and
``video`` need one of them. Of a long clip, in which the same things come again, it is also asked
what came when, in which order, and how often.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np

from omnizip_jax.testbed.synthetic_clips import COLOURS, SOUNDS, Thing

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
        clues: where who looks and listens finds the answer, for kinds that are not learned without
            being shown.
    """

    family: Family
    kind: str
    text: str
    answer: str
    thing: Thing | None = None
    clues: tuple[Thing, ...] = ()


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


def _about_things(things: tuple[Thing, ...]) -> Iterator[Question]:
    events = tuple(sorted((t for t in things if t.sound), key=lambda thing: thing.slot))
    shown = {thing.colour for thing in things}
    heard = {thing.sound for thing in events}

    def heard_with(colour: str) -> tuple[Thing, ...]:
        return tuple(event for event in events if event.colour == colour)

    for event in events:
        name, sound = NAMES[event.sound or ""], str(event.sound)
        text = f"Which colour was seen during the {name}?"
        yield Question("audio-visual", "colour of sound", text, event.colour, event)
        text = f"Which shape was seen during the {name}?"
        yield Question("audio-visual", "shape of sound", text, event.shape, event)
        text = f"Which sound was heard with the {event.colour} shape?"
        clues = heard_with(event.colour)
        yield Question("audio-visual", "sound of colour", text, sound, event, clues)
        length = "long" if event.long else "short"
        yield Question("audio", "length", f"Was the {name} short or long?", length, event)
    for thing in things:
        silent, text = "no" if thing.sound else "yes", f"Was the {thing.colour} shape silent?"
        yield Question("audio-visual", "silent", text, silent, thing, heard_with(thing.colour))
        text = f"Which shape was {thing.colour}?"
        yield Question("video", "shape of colour", text, thing.shape, thing)
    for sound in SOUNDS:
        yield Question("audio", "heard", f"Was there a {NAMES[sound]}?", _yes(sound in heard))
    for colour in COLOURS:
        yield Question("video", "seen", f"Was there a {colour} shape?", _yes(colour in shown))
    if len(events) < len(NUMBERS):
        number, text = NUMBERS[len(events)], "How many sounds were there?"
        yield Question("audio", "count", text, number, clues=events[-1:])
    if events:
        yield Question("audio", "first", "Which sound came first?", str(events[0].sound))


def _about_times(things: tuple[Thing, ...], seconds: int) -> Iterator[Question]:
    events = tuple(thing for thing in things if thing.sound)
    if events:
        yield Question("audio", "last", "Which sound came last?", str(events[-1].sound), events[-1])
        for name, thing in (("first", events[0]), ("last", events[-1])):
            text = f"Which colour was seen during the {name} sound?"
            yield Question("audio-visual", "colour of first or last", text, thing.colour, thing)
    often = Counter(event.sound for event in events)
    for one, following in pairwise(events):
        if often[one.sound] == 1:
            text = f"Which sound came after the {NAMES[str(one.sound)]}?"
            yield Question("audio", "next", text, str(following.sound), following)
    if len(often) < len(events):
        for sound, times in often.items():
            text = f"How many times was the {NAMES[str(sound)]} heard?"
            clues = tuple(event for event in events if event.sound == sound)
            yield Question("audio", "times", text, NUMBERS[times], clues=clues[-1:])
    for span, words in SPANS.items():
        if span * 1.5 > seconds:
            continue
        yield from _within("first", words, things, 0, span)
        yield from _within("last", words, things, seconds - span, seconds)


def _within(
    end: Literal["first", "last"], words: str, things: tuple[Thing, ...], start: int, stop: int
) -> Iterator[Question]:
    """About the first or last seconds, unless what they are about is too close to the cut."""
    when = f"in the {end} {words}"
    inside = tuple(thing for thing in things if start <= thing.slot < stop)
    cut, reach = stop if end == "first" else start, (stop - start) / 10 + 0.5
    close = [thing for thing in things if abs(thing.slot + 0.5 - cut) < reach]
    for sound in SOUNDS:
        if all(thing.sound != sound for thing in close):
            clues = tuple(thing for thing in inside if thing.sound == sound)
            text = f"Was there a {NAMES[sound]} {when}?"
            yield Question("audio", "heard when", text, _yes(clues), clues=clues)
    for colour in COLOURS:
        if all(thing.colour != colour for thing in close):
            clues = tuple(thing for thing in inside if thing.colour == colour)
            text = f"Was there a {colour} shape {when}?"
            yield Question("video", "seen when", text, _yes(clues), clues=clues)
    if not any(thing.sound for thing in close):
        heard = tuple(thing for thing in inside if thing.sound)
        text = f"How many different sounds were there {when}?"
        number = NUMBERS[len({thing.sound for thing in heard})]
        # From the beginning, the last one is where all of them are known.
        clues = heard[-1:] if end == "first" else heard
        yield Question("audio", "count when", text, number, clues=clues)


def _yes(found: object) -> str:
    return "yes" if found else "no"


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
