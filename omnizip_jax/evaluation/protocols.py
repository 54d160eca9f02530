"""Evaluation protocols: the prompt of a question, and the scoring of a reply.

Accuracies of one benchmark differ by whole points between protocols: a table names its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from omnizip_jax.evaluation.question_file import LETTERS, Question, lettered, normalised, unlettered
from omnizip_jax.evaluation.reply_reading import read_choice, read_free
from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Prompt and scoring of questions with options; free answers use the question alone.

    Attributes:
        name: on the command line.
        read: the letter that a reply to a question names; None, or no letter of an option, if the
            reply cannot be read.
        max_new_tokens: default limit of a reply.
        system: the system prompt; None: the model's default.
        before, heading, after: lines before the question, before the options and after them; ""
            omits one.
    """

    name: str
    read: Callable[[str, Sequence[str]], str | None]
    max_new_tokens: int
    system: str | None = None
    before: str = ""
    heading: str = ""
    after: str = ""

    def prompt(self, question: Question) -> str:
        """The text of the user's turn."""
        if not question.options:
            return question.text
        lines = [self.before, question.text, self.heading, *lettered(question.options), self.after]
        return "\n".join(line for line in lines if line)

    def answer_in(self, question: Question, reply: str) -> str | None:
        """The letter or the free answer in a reply; None if it cannot be read, or is unknown."""
        if question.answer is None:
            return None
        if not question.options:
            return read_free(reply, question.answer)
        letter = self.read(reply, unlettered(question.options))
        return letter if letter and letter in LETTERS[: len(question.options)] else None

    def score(self, question: Question, reply: str) -> bool | None:
        """Whether a reply is right; None if the answer is unknown."""
        if question.answer is None:
            return None
        found = self.answer_in(question, reply)
        return found == (question.answer if question.options else normalised(question.answer))

    def system_of(self, question: Question) -> str | None:
        """The system prompt; free answers use the model's default."""
        return self.system if question.options else None


def first_letter(reply: str, options: Sequence[str]) -> str:
    """The first character in upper case, as the authors' scripts read replies."""
    return reply.strip()[:1].upper()


def named_letter(reply: str, options: Sequence[str]) -> str:
    """The first capital letter of an option, as lmms-eval 0.7 reads replies to VideoMME.

    It removes these announcements first, in this order and case, and no others: "Best option: C"
    is read as B. It reads A to D; questions with more options, which VideoMME has not, have more.
    """
    for announcement in _ANNOUNCEMENTS:
        reply = reply.replace(announcement, "")
    found = re.search(f"[{LETTERS[: max(4, len(options))]}]", reply)
    return found[0] if found else ""


_ANNOUNCEMENTS = ("The best answer is", "The correct answer is", "The answer is", "The answer")

# Captions: the prompt alone, and a paragraph in reply.
OPEN_ENDED = Protocol("open", read_choice, max_new_tokens=256)

_AFTER = "Answer with the option's letter from the given choices directly."

# The authors' evaluation scripts, with the prompt of Qwen2.5-Omni for every model; by the
# paper's section 4.2 for all benchmarks but VideoMME.
_AUTHORS = Protocol(
    "authors",
    first_letter,
    max_new_tokens=100,
    system=f"{DEFAULT_SYSTEM} Please analyze the video carefully and select the most appropriate "
    "answer from the given options.",
    heading="Options:",
    after=_AFTER,
)

# The authors' prompt; replies are read as a person reads them.
DEFAULT = dataclasses.replace(_AUTHORS, name="default", read=read_choice)

# The task videomme of lmms-eval 0.7.
_LMMS_EVAL = Protocol(
    "lmms-eval",
    named_letter,
    max_new_tokens=16,
    before="Select the best answer to the following multiple-choice question based on the video "
    "and the subtitles. Respond with only the letter (A, B, C, or D) of the correct option.",
    after=_AFTER,
)

PROTOCOLS = {protocol.name: protocol for protocol in (DEFAULT, _AUTHORS, _LMMS_EVAL)}
