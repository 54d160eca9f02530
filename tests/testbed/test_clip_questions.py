"""Questions: answers follow from the objects of a clip, and answers are balanced."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from experiments.accuracy_questions import KINDS, draw_question
from omnizip_jax.testbed.clip_questions import (
    FAMILIES,
    NUMBERS,
    all_questions,
    draw_questions,
)
from omnizip_jax.testbed.synthetic_clips import DIFFICULTIES, ClipObject, draw_objects

THINGS = (
    ClipObject(0, "red", "circle", "trill", True),
    ClipObject(3, "blue", "square"),
    ClipObject(5, "cyan", "circle", "low", False),
)


def test_answers_of_a_known_clip():
    answers = {question.text: question.answer for question in all_questions(THINGS)}
    assert answers["Which colour was seen during the trill?"] == "red"
    assert answers["Which shape was seen during the low tone?"] == "circle"
    assert answers["Which sound was heard with the cyan shape?"] == "low"
    assert answers["Was the blue shape silent?"] == "yes"
    assert answers["Was the red shape silent?"] == "no"
    assert answers["Was the trill short or long?"] == "long"
    assert answers["Which shape was blue?"] == "square"
    assert answers["Was there a noise?"] == "no"
    assert answers["Was there a cyan shape?"] == "yes"
    assert answers["How many sounds were there?"] == "two"
    assert answers["Which sound came first?"] == "trill"
    assert "Which sound was heard with the blue shape?" not in answers


# Ninety seconds in which the trill and the red circle occur three times.
AGAIN = (
    ClipObject(2, "red", "circle", "trill", True),
    ClipObject(13, "blue", "square"),
    ClipObject(20, "cyan", "cross", "low", False),
    ClipObject(41, "red", "circle", "trill", True),
    ClipObject(62, "red", "circle", "trill", True),
    ClipObject(88, "green", "circle", "noise", False),
)


def test_answers_about_time_order_and_number():
    questions = {question.text: question for question in all_questions(AGAIN, seconds=90)}
    answers = {text: question.answer for text, question in questions.items()}
    assert answers["Which sound came first?"] == "trill"
    assert answers["Which sound came last?"] == "noise"
    assert answers["Which colour was seen during the first sound?"] == "red"
    assert answers["Which colour was seen during the last sound?"] == "green"
    assert answers["Which sound came after the low tone?"] == "trill"
    assert "Which sound came after the trill?" not in answers  # it occurs three times
    assert "Which sound came after the noise?" not in answers
    assert answers["How many times was the trill heard?"] == "three"
    assert answers["How many times was the low tone heard?"] == "one"
    assert answers["Was there a trill in the first ten seconds?"] == "yes"
    assert answers["Was there a noise in the first minute?"] == "no"
    assert answers["Was there a noise in the last ten seconds?"] == "yes"
    assert answers["Was there a low tone in the last minute?"] == "no"
    assert answers["Was there a blue shape in the first thirty seconds?"] == "yes"
    assert answers["Was there a green shape in the first thirty seconds?"] == "no"
    # At 62 s, too close to the end of the first minute.
    assert "Was there a trill in the first minute?" not in answers
    assert "How many different sounds were there in the first minute?" not in answers
    assert answers["How many different sounds were there in the first thirty seconds?"] == "two"
    assert answers["How many different sounds were there in the last ten seconds?"] == "one"
    assert not any("two minutes" in text for text in answers)  # the clip is shorter
    assert questions["Which colour was seen during the trill?"].subject == AGAIN[4]  # the last one
    assert {question.kind for question in questions.values()} == set(KINDS)


def test_without_a_length_no_question_is_about_time():
    assert {question.kind for question in all_questions(AGAIN)} == {
        question.kind for question in all_questions(THINGS)
    }


@pytest.mark.parametrize(("name", "windows"), [("hard", 4), ("long", 15), ("long", 150)])
def test_no_question_has_two_answers(name, windows):
    for seed in range(50):
        objects = draw_objects(np.random.default_rng(seed), DIFFICULTIES[name], windows)
        questions = all_questions(objects, seconds=2 * windows)
        assert len({question.text for question in questions}) == len(questions)
        assert {question.kind for question in questions} <= set(KINDS)


def test_answers_about_long_clips_match_a_count_of_the_objects():
    """Answers are derived a second time from the list of objects."""
    for seed in range(30):
        objects = draw_objects(np.random.default_rng(seed), DIFFICULTIES["long"], 30)
        for question in all_questions(objects, seconds=60):
            words = question.text.rstrip("?").split()
            first = 10 if "ten" in words else 30
            inside = [
                t
                for t in objects
                if (t.second < first if "first" in words else t.second >= 60 - first)
            ]
            if question.kind == "seen when":
                assert (question.answer == "yes") == any(t.colour == words[3] for t in inside)
            elif question.kind == "heard when":
                sound = words[3]
                assert (question.answer == "yes") == any(t.sound == sound for t in inside)
            elif question.kind == "count when":
                assert NUMBERS.index(question.answer) == len({t.sound for t in inside} - {None})
            elif question.kind == "times":
                times = [t.second for t in objects if t.sound == words[5]]
                assert NUMBERS.index(question.answer) == len(times)


def test_answers_about_time_are_balanced():
    counts = collections.defaultdict(collections.Counter)
    for seed in range(400):
        random = np.random.default_rng(seed)
        objects = draw_objects(random, DIFFICULTIES["long"], 30)
        for question in draw_questions(objects, random, 6, seconds=60):
            counts[question.kind][question.answer] += 1
    for kind, most in {"heard when": 0.6, "seen when": 0.6, "next": 0.3, "last": 0.3}.items():
        assert max(counts[kind].values()) < most * counts[kind].total()


@pytest.mark.slow
def test_every_family_has_questions_with_balanced_answers():
    random, counts = np.random.default_rng(0), collections.defaultdict(collections.Counter)
    for _ in range(600):
        objects = draw_objects(random, DIFFICULTIES["easy"], 4)
        for family in FAMILIES:
            question = draw_question(objects, random, family)
            assert question in all_questions(objects)
            assert question.family == family
            counts[question.kind][question.answer] += 1
    assert 0.4 < counts["seen"]["yes"] / counts["seen"].total() < 0.6
    assert 0.4 < counts["heard"]["yes"] / counts["heard"].total() < 0.6
    colours = counts["colour of sound"]
    assert max(colours.values()) < 0.3 * colours.total() and len(colours) == 6


def test_more_questions_than_kinds_are_refused():
    with pytest.raises(ValueError, match="kinds of questions, got 99"):
        draw_questions(THINGS, np.random.default_rng(0), 99)
