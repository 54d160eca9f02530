"""How a question is worded, and when a reply counts as right.

Accuracies of one benchmark differ by whole points between protocols: a table names its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from omnizip_jax.evaluation.question_file import LETTERS, Question
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Words around a question with options, and how its reply is read. Free answers know no words.

    Attributes:
        name: as the command line has it.
        system: the system prompt.
        before, heading, after: lines around question and options; "" leaves one out.
        letter: the option that a reply names, "" for none; greedy decoding is part of both.
        max_new_tokens: where a reply ends at the latest.
    """

    name: str
    system: str
    before: str
    heading: str
    after: str
    letter: Callable[[str, int], str]
    max_new_tokens: int

    def prompt(self, question: Question) -> str:
        """The user's turn."""
        if not question.options:
            return question.text
        lines = [self.before, question.text, self.heading, *question.choices, self.after]
        return "\n".join(line for line in lines if line)

    def score(self, question: Question, reply: str) -> bool | None:
        """Whether a reply is right; None where nobody knows."""
        if question.answer is None:
            return None
        if question.options:
            return self.letter(reply, len(question.options)) == question.answer
        return normalised(reply) == normalised(question.answer)

    def system_of(self, question: Question) -> str:
        """The system prompt: that of the protocol is about options."""
        return self.system if question.options else DEFAULT_SYSTEM


def first_letter(reply: str, options: int) -> str:
    """What the authors' code reads: the first character, in upper case."""
    return reply.strip()[:1].upper()


def named_letter(reply: str, options: int) -> str:
    """What lmms-eval reads in replies to VideoMME: the first capital letter of an option.

    Phrases that announce an answer are passed over, as they begin with capitals themselves.
    """
    reply = _ANNOUNCED.sub("", reply)
    found = re.search(f"[{LETTERS[:options]}]", reply)
    return found[0] if found else ""


_ANNOUNCED = re.compile(r"The (?:best|correct) (?:answer|option) is|The answer(?: is)?|Best \w+:")


def normalised(text: str) -> str:
    """Words alone: lower case, single spaces, without marks at either end."""
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'")


# Captions: the prompt as it is, and room for a paragraph.
OPEN = Protocol(
    name="open",
    system=DEFAULT_SYSTEM,
    before="",
    heading="",
    after="",
    letter=first_letter,
    max_new_tokens=256,
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # The authors' evaluation scripts; so says the paper's section 4.2 of all but VideoMME.
        Protocol(
            name="authors",
            system=f"{DEFAULT_SYSTEM} Please analyze the video carefully and select the most "
            "appropriate answer from the given options.",
            before="",
            heading="Options:",
            after="Answer with the option's letter from the given choices directly.",
            letter=first_letter,
            max_new_tokens=100,
        ),
        # The task videomme of lmms-eval 0.7.
        Protocol(
            name="lmms-eval",
            system=DEFAULT_SYSTEM,
            before="Select the best answer to the following multiple-choice question based on the "
            "video and the subtitles. Respond with only the letter (A, B, C, or D) of the correct "
            "option.",
            heading="",
            after="Answer with the option's letter from the given choices directly.",
            letter=named_letter,
            max_new_tokens=16,
        ),
    )
}
