"""Prompts and scoring of the protocols."""

from __future__ import annotations

import pytest

from omnizip_jax.evaluation.protocols import PROTOCOLS
from omnizip_jax.evaluation.question_file import Question

CHOICE = Question("1", "a.mp4", "Who speaks?", ("he", "she", "both"), "B")
FREE = Question("2", "a.mp4", "Who speaks?", answer="The Host")


def test_the_authors_prompt():
    protocol = PROTOCOLS["authors"]
    assert protocol.prompt(CHOICE) == (
        "Who speaks?\nOptions:\nA. he\nB. she\nC. both\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert protocol.system_of(CHOICE).endswith("appropriate answer from the given options.")
    assert protocol.max_new_tokens == 100


def test_free_questions_are_the_whole_prompt():
    for protocol in PROTOCOLS.values():
        assert protocol.prompt(FREE) == "Who speaks?"
        assert protocol.system_of(FREE) is None


@pytest.mark.parametrize(
    ("reply", "authors", "lmms_eval", "default"),
    [
        ("B", True, True, True),
        (" b. she", True, False, True),  # lmms-eval looks for capitals
        ("B. she", True, True, True),
        ("The answer is B", False, True, True),
        ("The best answer is: B.", False, True, True),
        ("Both of them", True, True, False),  # both scripts count it as right
        ("Best option: C", True, True, False),  # lmms-eval does not remove this announcement
        ("Answer: B", False, False, True),
        ("she", False, False, True),
        ("A or B", False, False, False),
        ("", False, False, False),
    ],
)
def test_letters_in_replies(reply, authors, lmms_eval, default):
    assert PROTOCOLS["authors"].score(CHOICE, reply) is authors
    assert PROTOCOLS["lmms-eval"].score(CHOICE, reply) is lmms_eval
    assert PROTOCOLS["default"].score(CHOICE, reply) is default


@pytest.mark.parametrize(
    ("protocol", "unread"),
    [
        ("authors", ["The answer is B", "", "none"]),
        ("lmms-eval", ["she", "", "none"]),
        ("default", ["A or B", "", "none"]),
    ],
)
def test_replies_that_cannot_be_read(protocol, unread):
    assert [PROTOCOLS[protocol].answer_in(CHOICE, reply) for reply in unread] == [None] * 3
    assert PROTOCOLS[protocol].answer_in(CHOICE, "C") == "C"


def test_the_default_asks_as_the_authors_do():
    assert PROTOCOLS["default"].prompt(CHOICE) == PROTOCOLS["authors"].prompt(CHOICE)


def test_lmms_eval_reads_the_letters_of_four_options():
    """A reply of D to three options is not searched for another letter."""
    assert PROTOCOLS["lmms-eval"].score(CHOICE, "D or B") is False


@pytest.mark.parametrize(
    ("reply", "right"),
    [("the host", True), (" The  Host.", True), ("a host", False), ("", False)],
)
def test_free_answers_match_word_by_word(reply, right):
    assert PROTOCOLS["authors"].score(FREE, reply) is right


def test_an_unknown_answer_is_not_scored():
    assert PROTOCOLS["authors"].score(Question("3", "a.mp4", "Why?"), "because") is None
