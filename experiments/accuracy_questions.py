"""Clips, questions and kept shares of the accuracy measurement, by difficulty.

Clips and questions depend on the seed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from omnizip_jax.testbed.clip_questions import (
    FAMILIES,
    Family,
    Question,
    all_questions,
    draw_questions,
)
from omnizip_jax.testbed.synthetic_clips import (
    DIFFICULTIES,
    SPEC,
    ClipObject,
    Difficulty,
    Split,
    SyntheticClip,
    draw_objects,
    make_clip,
    random_generator,
)

# Kinds of questions; training numbers them.
KINDS = (
    "colour of sound",
    "shape of sound",
    "sound of colour",
    "silent",
    "colour of first or last",
    "length",
    "heard",
    "count",
    "first",
    "last",
    "next",
    "times",
    "heard when",
    "count when",
    "shape of colour",
    "seen",
    "seen when",
)
BLOCK_WINDOWS = 32  # of all clips of a block, which one program processes


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Clips of a difficulty and the questions about them.

    Attributes:
        difficulty: its name.
        clips: number of clips; their seeds start at 0.
        shares: of the tokens that every method keeps, a row each.
        per_clip: questions about a clip, all of different kinds; None: one of each family.
        thorough: whether to measure also ablations, mixtures, methods that are slow on long clips,
            and clips with audio or video of another one.
    """

    difficulty: str
    clips: int
    shares: tuple[float, ...]
    per_clip: int | None = None
    thorough: bool = True

    @property
    def parameters(self) -> Difficulty:
        return DIFFICULTIES[self.difficulty]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the clips in windows, in turn by seed."""
        return self.parameters.windows

    def windows(self, seed: int) -> int:
        """Length of the clip of a seed, in windows."""
        return self.lengths[seed % len(self.lengths)]

    def content(self, seed: int, split: Split) -> tuple[tuple[ClipObject, ...], list[Question]]:
        """Objects of the clip of a seed and the questions, without rendering the clip."""
        windows = self.windows(seed)
        objects = draw_objects(random_generator(split, seed), self.parameters, windows)
        # Questions about time only where objects appear several times.
        seconds = windows * SPEC.seconds if self.parameters.max_occurrences > 1 else None
        random = np.random.default_rng([1, seed])
        if self.per_clip:
            return objects, draw_questions(objects, random, self.per_clip, seconds=seconds)
        return objects, [draw_question(objects, random, family, seconds) for family in FAMILIES]

    def questions(self, seed: int, split: Split) -> list[Question]:
        return self.content(seed, split)[1]

    def clip(self, seed: int, split: Split) -> SyntheticClip:
        return make_clip(seed, split, self.parameters, self.windows(seed))

    def other_seed(self, seed: int) -> int:
        """Seed of another clip of the same length."""
        return seed + len(self.lengths)

    def blocks(self, seeds: list[int]) -> Iterator[list[int]]:
        """Divide seeds into blocks of clips of equal length, shorter lengths first."""
        for length in self.lengths:
            equal = [seed for seed in seeds if self.windows(seed) == length]
            size = block_clips(length)
            for start in range(0, len(equal), size):
                yield equal[start : start + size]


def block_clips(windows: int) -> int:
    """Number of clips of this length in a block."""
    return max(1, BLOCK_WINDOWS // windows)


_SHARES = (0.45, 0.35, 0.25, 0.15)
QUESTION_SETS = {
    questions.difficulty: questions
    for questions in (
        QuestionSet("easy", 1000, _SHARES),
        QuestionSet("hard", 1000, _SHARES),
        QuestionSet("moving", 1000, _SHARES),
        QuestionSet("long", 100, _SHARES[1:], per_clip=12, thorough=False),
    )
}


def clip_and_questions(
    seed: int, split: Split, difficulty: str
) -> tuple[SyntheticClip, list[Question]]:
    """The clip of a seed and the questions about it."""
    questions = QUESTION_SETS[difficulty]
    return questions.clip(seed, split), questions.questions(seed, split)


def draw_question(
    objects: tuple[ClipObject, ...],
    random: np.random.Generator,
    family: Family,
    seconds: int | None = None,
) -> Question:
    """Draw one question of a family.

    Raises:
        ValueError: the clip allows for no question of that family.
    """
    kinds = {question.kind for question in all_questions(objects, family, seconds)}
    if not kinds:
        raise ValueError(f"no question of the family {family!r} can be asked about this clip")
    return draw_questions(objects, random, 1, kinds, seconds)[0]
