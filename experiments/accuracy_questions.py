"""What is asked about the clips of each difficulty: how many clips, which questions, which shares.

Clips and questions come from seeds: the same seed gives the same quiz, whoever asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from omnizip_jax.testbed.clip_questions import FAMILIES, Question, draw_question, draw_questions
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

BLOCK_WINDOWS = 32  # of all clips that one program reads


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is asked about the clips of a difficulty.

    Attributes:
        difficulty: its name.
        clips: how many, with the seeds from 0.
        shares: of the tokens that every method keeps, a row each.
        each: questions about a clip, all of different kinds; None: one of each family.
        thorough: also ablations and mixtures, methods that take long with long clips, and clips
            with the sound or the picture of another one.
    """

    difficulty: str
    clips: int
    shares: tuple[float, ...]
    each: int | None = None
    thorough: bool = True

    @property
    def look(self) -> Difficulty:
        return DIFFICULTIES[self.difficulty]

    @property
    def questions(self) -> int:
        """About each clip."""
        return self.each or len(FAMILIES)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Windows of the clips, in turn by seed: few lengths, so that few programs do."""
        return self.look.windows

    def windows(self, seed: int) -> int:
        """How many windows the clip of a seed has."""
        return self.lengths[seed % len(self.lengths)]

    def plot(self, seed: int, split: Split) -> tuple[tuple[ClipObject, ...], list[Question]]:
        """What happens in the clip of a seed, and the questions, without making the clip."""
        windows = self.windows(seed)
        objects = draw_objects(random_generator(split, seed), self.look, windows)
        # Where things come again, it is also asked when.
        seconds = windows * SPEC.seconds if self.look.max_occurrences > 1 else None
        random = np.random.default_rng([1, seed])
        if self.each:
            return objects, draw_questions(objects, random, self.each, seconds=seconds)
        return objects, [draw_question(objects, random, family, seconds) for family in FAMILIES]

    def clip(self, seed: int, split: Split) -> SyntheticClip:
        """The clip of a seed."""
        return make_clip(seed, split, self.look, self.windows(seed))

    def other(self, seed: int) -> int:
        """The seed of another clip of the same length."""
        return seed + len(self.lengths)

    def blocks(self, seeds: list[int]) -> Iterator[list[int]]:
        """Clips of equal length, shorter lengths first; as many of each length at a time."""
        for length in self.lengths:
            equal = [seed for seed in seeds if self.windows(seed) == length]
            together = clips_together(length)
            for start in range(0, len(equal), together):
                yield equal[start : start + together]


def clips_together(windows: int) -> int:
    """How many clips of a length make a block."""
    return max(1, BLOCK_WINDOWS // windows)


_SHORT = (0.45, 0.35, 0.25, 0.15)
SURVEYS = {
    survey.difficulty: survey
    for survey in (
        Survey("easy", 1000, _SHORT),
        Survey("hard", 1000, _SHORT),
        Survey("moving", 1000, _SHORT),
        Survey("long", 100, _SHORT[1:], each=12, thorough=False),
    )
}


def quiz(seed: int, split: Split, difficulty: str) -> tuple[SyntheticClip, list[Question]]:
    """The clip of a seed, and the questions about it."""
    survey = SURVEYS[difficulty]
    return survey.clip(seed, split), survey.plot(seed, split)[1]
