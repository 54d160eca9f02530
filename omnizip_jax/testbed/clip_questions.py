"""Questions about synthetic clips, with answers of one word.

Three families: ``audio-visual`` questions need audio and video of the same second, ``audio`` and
``video`` questions need one of them. Long clips, in which objects appear several times, also have
questions about time, order and number.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np

from omnizip_jax.testbed.synthetic_clips import COLOURS, SOUNDS, ClipObject

Family = Literal["audio-visual", "audio", "video"]
FAMILIES: tuple[Family, ...] = ("audio-visual", "audio", "video")

NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
# Seconds in words. No question is asked about what begins too close to the end of a span.
SPANS = {10: "ten seconds", 30: "thirty seconds", 60: "minute", 120: "two minutes"}
NAMES = {sound: f"{sound} tone" for sound in SOUNDS[:4]} | {"noise": "noise", "trill": "trill"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its true answer.

    Attributes:
        subject: object that decides the answer, at its last appearance; None if the answer takes
            several objects or none.
        evidence: objects in whose tokens the answer is found, for the kinds of questions for which
            the training supervises attention.
    """

    family: Family
    kind: str
    text: str
    answer: str
    subject: ClipObject | None = None
    evidence: tuple[ClipObject, ...] = ()


def all_questions(
    objects: tuple[ClipObject, ...], family: Family | None = None, seconds: int | None = None
) -> list[Question]:
    """Every question that can be asked about a clip, or those of one family.

    Args:
        objects: by second.
        seconds: length of the clip; adds questions about time, order and number.
    """
    out = [*_about_objects(objects), *(_about_times(objects, seconds) if seconds else ())]
    # An object that appears again repeats its questions; the last appearance decides.
    different = {question.text: question for question in out}
    return [question for question in different.values() if family in (None, question.family)]


def _about_objects(objects: tuple[ClipObject, ...]) -> Iterator[Question]:
    events = tuple(sorted((t for t in objects if t.sound), key=lambda obj: obj.second))
    shown = {obj.colour for obj in objects}
    heard = {obj.sound for obj in events}

    def heard_with(colour: str) -> tuple[ClipObject, ...]:
        return tuple(event for event in events if event.colour == colour)

    for event in events:
        name, sound = NAMES[event.sound or ""], str(event.sound)
        text = f"Which colour was seen during the {name}?"
        yield Question("audio-visual", "colour of sound", text, event.colour, event)
        text = f"Which shape was seen during the {name}?"
        yield Question("audio-visual", "shape of sound", text, event.shape, event)
        text = f"Which sound was heard with the {event.colour} shape?"
        evidence = heard_with(event.colour)
        yield Question("audio-visual", "sound of colour", text, sound, event, evidence)
        length = "long" if event.long else "short"
        yield Question("audio", "length", f"Was the {name} short or long?", length, event)
    for obj in objects:
        silent, text = "no" if obj.sound else "yes", f"Was the {obj.colour} shape silent?"
        yield Question("audio-visual", "silent", text, silent, obj, heard_with(obj.colour))
        text = f"Which shape was {obj.colour}?"
        yield Question("video", "shape of colour", text, obj.shape, obj)
    for sound in SOUNDS:
        yield Question("audio", "heard", f"Was there a {NAMES[sound]}?", _yes(sound in heard))
    for colour in COLOURS:
        yield Question("video", "seen", f"Was there a {colour} shape?", _yes(colour in shown))
    if len(events) < len(NUMBERS):
        number, text = NUMBERS[len(events)], "How many sounds were there?"
        yield Question("audio", "count", text, number, evidence=events[-1:])
    if events:
        yield Question("audio", "first", "Which sound came first?", str(events[0].sound))


def _about_times(objects: tuple[ClipObject, ...], seconds: int) -> Iterator[Question]:
    events = tuple(obj for obj in objects if obj.sound)
    if events:
        yield Question("audio", "last", "Which sound came last?", str(events[-1].sound), events[-1])
        for name, obj in (("first", events[0]), ("last", events[-1])):
            text = f"Which colour was seen during the {name} sound?"
            yield Question("audio-visual", "colour of first or last", text, obj.colour, obj)
    often = Counter(event.sound for event in events)
    for one, following in pairwise(events):
        if often[one.sound] == 1:
            text = f"Which sound came after the {NAMES[str(one.sound)]}?"
            yield Question("audio", "next", text, str(following.sound), following)
    if len(often) < len(events):
        for sound, times in often.items():
            text = f"How many times was the {NAMES[str(sound)]} heard?"
            evidence = tuple(event for event in events if event.sound == sound)
            yield Question("audio", "times", text, NUMBERS[times], evidence=evidence[-1:])
    for span, words in SPANS.items():
        if span * 1.5 > seconds:
            continue
        yield from _within("first", words, objects, 0, span)
        yield from _within("last", words, objects, seconds - span, seconds)


def _within(
    end: Literal["first", "last"],
    words: str,
    objects: tuple[ClipObject, ...],
    start: int,
    stop: int,
) -> Iterator[Question]:
    """Questions about a span, except those about objects too close to its boundary."""
    when = f"in the {end} {words}"
    inside = tuple(obj for obj in objects if start <= obj.second < stop)
    boundary, reach = stop if end == "first" else start, (stop - start) / 10 + 0.5
    close = [obj for obj in objects if abs(obj.second + 0.5 - boundary) < reach]
    for sound in SOUNDS:
        if all(obj.sound != sound for obj in close):
            evidence = tuple(obj for obj in inside if obj.sound == sound)
            text = f"Was there a {NAMES[sound]} {when}?"
            yield Question("audio", "heard when", text, _yes(evidence), evidence=evidence)
    for colour in COLOURS:
        if all(obj.colour != colour for obj in close):
            evidence = tuple(obj for obj in inside if obj.colour == colour)
            text = f"Was there a {colour} shape {when}?"
            yield Question("video", "seen when", text, _yes(evidence), evidence=evidence)
    if not any(obj.sound for obj in close):
        heard = tuple(obj for obj in inside if obj.sound)
        text = f"How many different sounds were there {when}?"
        number = NUMBERS[len({obj.sound for obj in heard})]
        # Counting from the beginning, the count is complete at the last one.
        evidence = heard[-1:] if end == "first" else heard
        yield Question("audio", "count when", text, number, evidence=evidence)


def _yes(found: object) -> str:
    return "yes" if found else "no"


def draw_questions(
    objects: tuple[ClipObject, ...],
    random: np.random.Generator,
    count: int,
    only: Collection[str] | None = None,
    seconds: int | None = None,
) -> list[Question]:
    """Draw questions of different kinds; kinds, and answers of a kind, are equally likely.

    Args:
        only: kinds to draw from; None for all.
        seconds: as in ``all_questions``.

    Raises:
        ValueError: the clip allows for fewer kinds than ``count``.
    """
    kinds: dict[str, dict[str, list[Question]]] = {}
    for question in all_questions(objects, seconds=seconds):
        if only is None or question.kind in only:
            kinds.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
    if count > len(kinds):
        raise ValueError(f"this clip allows for {len(kinds)} kinds of questions, got {count}")
    chosen = random.permutation(list(kinds))[:count]
    out = []
    for kind in chosen:
        answers = list(kinds[kind].values())
        same = answers[random.integers(len(answers))]
        out.append(same[random.integers(len(same))])
    return out
