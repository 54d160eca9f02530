"""Replies in the forms that models use, read as a person reads them."""

from __future__ import annotations

import pytest

from omnizip_jax.evaluation.question_file import normalised
from omnizip_jax.evaluation.reply_reading import read_choice, read_free

OPTIONS = ("red", "blue", "green", "black")

# Between bars. {L} and {l} are the letter in both cases, {t} is the text of its option.
FORMS = r"""
{L}|{L}.|{l}|({L})|[{L}]|**{L}**|"{L}"|{L}!|→ {L}|<answer>{L}</answer>|\boxed{{{L}}}
$\boxed{{\text{{{L}}}}}$|Answer: {L}|ANSWER: {L}|**Answer:** {L}|Answer\n\n{L}|Answer - {L}
Answer = {L}|Ans. {l}|Final answer: {l}|The answer is {L}.|The answer is ({L}).|the answer is {l}
The answer: "{L}"|My answer is {L}|The correct answer is {L}. {t}|The correct option is: {L}
Best option: ({L})|The most likely answer is {L}.|Based on the video, the answer is {L}.
The answer to this question is {L}.|The answer should be option {l}.|{L}) {t}|{L}. {t}|{L}: {t}
({l}) {t}|{L} - {t}|{L} ({t})|{t} ({L})|{L}, {t}|{L}, because it shows {t}|Option {L}
Option {L}) {t}|Option {L} is correct.|Choice ({L})|The letter is {L}|I select option {L}.
I think it is {L}|I think it's {l})|It's {L}|I choose {l}|I would say {L}.|Let's go with {L}.
My guess: {l}|Definitely {L}|As shown, {L}|They are both seen, so {L}|It must be {L}.
That would be {L}.|Therefore {L}.|{L} is the right answer|{L} is correct because the sky is {t}
{L} is the correct answer because C shows a cat|{t}|{t}.|**{t}**|The video shows a {t} car.
It is {t}|A or B or C or D? {L}|None is certain. {L}|{L}\n\nExplanation: in C we see a dog.
<think>A? No.</think>{L}|A. red\nB. blue\nC. green\nD. black\nThe answer is {L}
A is a dog. C is a cat.\nSo the correct answer is {L}.|Selected option: {L}|I am going with {L}
"""


@pytest.mark.parametrize("letter", "ABCD")
def test_common_forms_of_a_choice(letter):
    text = OPTIONS["ABCD".index(letter)]
    forms = [form for line in FORMS.strip().split("\n") for form in line.split("|")]
    replies = [
        form.replace("\\n", "\n").format(L=letter, l=letter.lower(), t=text) for form in forms
    ]
    read = {reply: read_choice(reply, OPTIONS) for reply in replies}
    assert len(read) >= 75
    assert {reply: found for reply, found in read.items() if found != letter} == {}


@pytest.mark.parametrize(
    "reply",
    [
        "It's not A, it's B.",
        "The answer is not A but B",
        "Option A is incorrect. Option B is correct.",
        "A is wrong, B is right",
        "Neither A nor C. B",
        "B, not A",
        "A: incorrect. B: correct.",
        "(A) red (B) blue (C) green (D) black. I choose B",
        "Options: A. red B. blue C. green D. black\nAnswer: B",
        "I first thought A. Then B.",
        "The answer is A... no, the answer is B.",
        "Ｂ",
        "Ⓑ",
        "答案：B",
        "答案是B",
    ],
)
def test_dismissed_options_and_other_scripts(reply):
    assert read_choice(reply, OPTIONS) == "B"


@pytest.mark.parametrize(
    "reply",
    [
        *("", "?", "I cannot tell.", "None", "Yes", "Option 5", "E", "The answer is E"),
        *("A and B", "A or B", "A/B", "A, B", "Either A or C", "A\nB", "red and blue"),
        *("The answer is A and B", "Answer: B or C", "Both A and B are correct"),
        *("A dog barks", "A man is speaking", "The answer is a dog", "It is a dog", "I see it"),
        *("not A", "It is not blue", "B. blue\nC. green", "A. red B. blue C. green D. black"),
        *("<think>A shows a dog, so", "It is in the sky"),
        *("Speaker A talks", "The song is in D minor", "D'accord", "B-roll"),
    ],
)
def test_replies_that_choose_nothing(reply):
    assert read_choice(reply, OPTIONS) is None


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("A dog", ("A dog", "A cat"), "A"),
        ("A cat is running", ("A dog", "A cat"), "B"),
        ("Both A and B", ("he", "she", "neither", "Both A and B"), "D"),
        ("It is in D minor", ("C major", "D minor"), "B"),
        ("C", ("C", "D", "E", "A"), "C"),
        ("It shows red and blue", ("red", "red and blue"), "B"),
        ("3 times", ("3 times", "5 times"), "A"),
        ("No, the answer is C.", ("Yes", "No", "Maybe"), "C"),
        ("I", tuple("zyxwvutsr"), "I"),
        ("I think B", tuple("zyxwvutsr"), "B"),
        ("C", ("he", "she"), None),
        ("It is a chord", ("C", "D", "E", "A"), None),
        ("There are 2", ("1", "2", "3"), "B"),
    ],
)
def test_texts_of_options(reply, options, letter):
    assert read_choice(reply, options) == letter


@pytest.mark.parametrize(
    ("answer", "right", "unread", "wrong"),
    [
        (
            "3",
            "3|3.|3 times|Three|three times|They jumped 3 times.|**3**|Answer: 3|3, one a second",
            "1 or 2||not sure",
            "4|13|two",
        ),
        ("0", "zero|none|0 times", "", "1"),
        (
            "Yes",
            "Yes|yes.|Yes, it is.|**Yes**|Answer: yes|Yes, no doubt",
            "|maybe|Yes and no",
            "No",
        ),
        ("No", "No|No, not yet|no.", "I know|not", "Yes"),
        ("The Host", "the host| The  Host.|It is the host|The answer is the host.", "", "a host"),
    ],
)
def test_free_answers(answer, right, unread, wrong):
    def read(replies):
        return {read_free(reply, answer) for reply in replies.split("|")}

    assert read(right) == {normalised(answer)}
    assert not unread or read(unread) == {None}
    assert {None, normalised(answer)}.isdisjoint(read(wrong))
