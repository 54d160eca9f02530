"""What is asked: the same for whoever asks, and possible for every clip."""

from __future__ import annotations

import pytest

from experiments.accuracy_questions import BLOCK_WINDOWS, SURVEYS, quiz
from omnizip_jax.testbed.clip_questions import FAMILIES


@pytest.mark.parametrize("name", SURVEYS)
def test_a_plot_is_that_of_the_clip(name):
    survey = SURVEYS[name]
    assert survey.difficulty == name
    clip, questions = quiz(0, "test", name)
    assert clip.objects == survey.plot(0, "test")[0]
    assert len(clip.video_objects) == 2 * survey.windows(0)
    assert questions == quiz(0, "test", name)[1] != survey.plot(0, "validation")[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", SURVEYS)
def test_every_clip_can_be_asked_about(name):
    survey = SURVEYS[name]
    for seed in range(survey.clips):
        questions = survey.plot(seed, "test")[1]
        assert len(questions) == survey.questions
        if survey.each:  # of different kinds, of all families
            assert len({question.kind for question in questions}) == survey.questions
            assert {question.family for question in questions} == set(FAMILIES)
        else:
            assert tuple(question.family for question in questions) == FAMILIES


def test_blocks_hold_clips_of_one_length():
    survey = SURVEYS["long"]
    assert survey.lengths == (15, 30, 60, 150)
    blocks = list(survey.blocks(list(range(10))))
    assert blocks == [[0, 4], [8], [1], [5], [9], [2], [6], [3], [7]]
    assert all(survey.windows(survey.other(s)) == survey.windows(s) for s in range(10))
    assert [len(block) for block in SURVEYS["easy"].blocks(list(range(20)))] == [8, 8, 4]
    assert BLOCK_WINDOWS == 32
