"""Evaluation protocols: the prompt of a question, and the scoring of a reply.

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
    """Prompt and scoring of questions with options; free answers use the question alone.

    Attributes:
        name: on the command line.
        letter: the option that a reply names, or "".
        max_new_tokens: default limit of a reply.
        system: the system prompt.
        before, heading, after: lines before the question, before the options and after them; ""
            omits one.
    """

    name: str
    letter: Callable[[str, int], str]
    max_new_tokens: int
    system: str = DEFAULT_SYSTEM
    before: str = ""
    heading: str = ""
    after: str = ""

    def prompt(self, question: Question) -> str:
        """The text of the user's turn."""
        if not question.options:
            return question.text
        lines = [self.before, question.text, self.heading, *question.choices, self.after]
        return "\n".join(line for line in lines if line)

    def score(self, question: Question, reply: str) -> bool | None:
        """Whether a reply is right; None if the answer is unknown."""
        if question.answer is None:
            return None
        if question.options:
            return self.letter(reply, len(question.options)) == question.answer
        return normalised(reply) == normalised(question.answer)

    def system_of(self, question: Question) -> str:
        """The system prompt; free answers use the model's default."""
        return self.system if question.options else DEFAULT_SYSTEM


def first_letter(reply: str, options: int) -> str:
    """The first character in upper case, as the authors' scripts read replies."""
    return reply.strip()[:1].upper()


def named_letter(reply: str, options: int) -> str:
    """The first capital letter of an option, as lmms-eval reads replies to VideoMME.

    Phrases that announce an answer begin with capitals themselves and are removed first.
    """
    found = re.search(f"[{LETTERS[:options]}]", _ANNOUNCEMENT.sub("", reply))
    return found[0] if found else ""


_ANNOUNCEMENT = re.compile(
    r"The (?:best|correct) (?:answer|option) is|The answer(?: is)?|Best \w+:"
)


def normalised(text: str) -> str:
    """The words in lower case, separated by single spaces, without punctuation at either end."""
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'")


# Captions: the prompt alone, and a paragraph in reply.
OPEN_ENDED = Protocol("open", first_letter, max_new_tokens=256)

_AFTER = "Answer with the option's letter from the given choices directly."

# The authors' evaluation scripts; by the paper's section 4.2 for all benchmarks but VideoMME.
_AUTHORS = Protocol(
    "authors",
    first_letter,
    max_new_tokens=100,
    system=f"{DEFAULT_SYSTEM} Please analyze the video carefully and select the most appropriate "
    "answer from the given options.",
    heading="Options:",
    after=_AFTER,
)

# The task videomme of lmms-eval 0.7.
_LMMS_EVAL = Protocol(
    "lmms-eval",
    named_letter,
    max_new_tokens=16,
    before="Select the best answer to the following multiple-choice question based on the video "
    "and the subtitles. Respond with only the letter (A, B, C, or D) of the correct option.",
    after=_AFTER,
)

PROTOCOLS = {protocol.name: protocol for protocol in (_AUTHORS, _LMMS_EVAL)}
