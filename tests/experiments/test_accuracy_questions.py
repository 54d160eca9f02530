"""Clips and questions of the accuracy measurement."""

from __future__ import annotations

import pytest

from experiments.accuracy_questions import BLOCK_WINDOWS, QUESTION_SETS, clip_and_questions
from omnizip_jax.testbed.clip_questions import FAMILIES


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_content_is_that_of_the_clip(name):
    question_set = QUESTION_SETS[name]
    assert question_set.difficulty == name
    clip, questions = clip_and_questions(0, "test", name)
    assert clip.objects == question_set.content(0, "test")[0]
    assert len(clip.video_objects) == 2 * question_set.windows(0)
    assert (
        questions
        == clip_and_questions(0, "test", name)[1]
        != question_set.questions(0, "validation")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTION_SETS)
def test_every_clip_can_be_asked_about(name):
    question_set = QUESTION_SETS[name]
    for seed in range(question_set.clips):
        questions = question_set.questions(seed, "test")
        assert len(questions) == (question_set.per_clip or len(FAMILIES))
        if question_set.per_clip:  # of different kinds, of all families
            assert len({question.kind for question in questions}) == question_set.per_clip
            assert {question.family for question in questions} == set(FAMILIES)
        else:
            assert tuple(question.family for question in questions) == FAMILIES


def test_blocks_hold_clips_of_one_length():
    question_set = QUESTION_SETS["long"]
    assert question_set.lengths == (15, 30, 60, 150)
    blocks = list(question_set.blocks(list(range(10))))
    assert blocks == [[0, 4], [8], [1], [5], [9], [2], [6], [3], [7]]
    assert all(
        question_set.windows(question_set.other_seed(s)) == question_set.windows(s)
        for s in range(10)
    )
    assert [len(block) for block in QUESTION_SETS["easy"].blocks(list(range(20)))] == [8, 8, 4]
    assert BLOCK_WINDOWS == 32
