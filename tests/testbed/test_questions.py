"""Questions: answers follow from the things in a clip, and no answer is likelier than others."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from omnizip_jax.testbed.clips import DIFFICULTIES, Thing, draw_things
from omnizip_jax.testbed.questions import FAMILIES, all_questions, draw_question, draw_questions

THINGS = (
    Thing(0, "red", "circle", "trill", True),
    Thing(3, "blue", "square"),
    Thing(5, "cyan", "circle", "low", False),
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


def test_no_question_has_two_answers():
    for seed in range(50):
        things = draw_things(np.random.default_rng(seed), DIFFICULTIES["hard"], 4)
        questions = all_questions(things)
        assert len({question.text for question in questions}) == len(questions)


def test_questions_come_in_every_family_and_without_favourites():
    random, counts = np.random.default_rng(0), collections.defaultdict(collections.Counter)
    for _ in range(600):
        things = draw_things(random, DIFFICULTIES["easy"], 4)
        for family in FAMILIES:
            question = draw_question(things, random, family)
            assert question in all_questions(things)
            assert question.family == family
            counts[question.kind][question.answer] += 1
    assert 0.4 < counts["seen"]["yes"] / counts["seen"].total() < 0.6
    assert 0.4 < counts["heard"]["yes"] / counts["heard"].total() < 0.6
    colours = counts["colour of sound"]
    assert max(colours.values()) < 0.3 * colours.total() and len(colours) == 6


def test_more_questions_than_kinds_are_refused():
    with pytest.raises(ValueError, match="kinds of questions, not 99"):
        draw_questions(THINGS, np.random.default_rng(0), 99)
