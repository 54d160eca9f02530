"""Questions about a test clip, in words, with answers of one word.

Three families: ``audio-visual`` needs sound and picture of the same moment, ``audio`` and
``video`` need one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import numpy as np

from omnizip_jax.testbed.clips import COLOURS, SOUNDS, Thing

Family = Literal["audio-visual", "audio", "video"]
FAMILIES: tuple[Family, ...] = ("audio-visual", "audio", "video")

NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
NAMES = {sound: f"{sound} tone" for sound in SOUNDS[:4]} | {"noise": "noise", "trill": "trill"}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its true answer.

    Attributes:
        thing: that decides the answer; None where it takes more than one, or none.
    """

    family: Family
    kind: str
    text: str
    answer: str
    thing: Thing | None = None


def all_questions(things: tuple[Thing, ...], family: Family | None = None) -> list[Question]:
    """Every question that can be asked about a clip, or those of one family."""
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
    add("audio", "count", "How many sounds were there?", NUMBERS[len(events)])
    if events:
        add("audio", "first", "Which sound came first?", str(events[0].sound))
    return [question for question in out if family in (None, question.family)]


def draw_questions(
    things: tuple[Thing, ...],
    random: np.random.Generator,
    count: int,
    only: Collection[str] | None = None,
) -> list[Question]:
    """Draw different questions: every kind as likely, and every answer to it.

    Args:
        only: the kinds to draw from; None for all.

    Raises:
        ValueError: more questions than there are kinds that can be asked about the clip.
    """
    kinds: dict[str, dict[str, list[Question]]] = {}
    for question in all_questions(things):
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
    things: tuple[Thing, ...], random: np.random.Generator, family: Family
) -> Question:
    """Draw one question of a family.

    Raises:
        ValueError: none of that family can be asked about the clip.
    """
    kinds = {question.kind for question in all_questions(things, family)}
    if not kinds:
        raise ValueError(f"no question of the family {family!r} can be asked about this clip")
    return draw_questions(things, random, 1, kinds)[0]
