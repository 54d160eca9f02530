"""The clip that plays by itself on the page: shapes are seen, and some of them sound."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from omnizip_jax.testbed.clip_questions import all_questions
from omnizip_jax.testbed.synthetic_clips import SyntheticClip, make_clip

SEED, WINDOWS = 4, 8  # of a clip about which there is much to ask

# Of the picture, of sound and picture together, and of the whole clip.
KINDS = ("shape of colour", "colour of sound", "sound of colour", "silent", "count")


@functools.cache
def sample() -> SyntheticClip:
    """The clip."""
    return make_clip(SEED, windows=WINDOWS)


@functools.cache
def sample_file() -> bytes:
    """The clip as an mp4."""
    with tempfile.TemporaryDirectory(prefix="omnizip_") as folder:
        return sample().write(Path(folder) / "sample.mp4").read_bytes()


def sample_questions() -> list[dict[str, Any]]:
    """A question of each of a few kinds, its true answer, and the second since when it is true."""
    objects = sample().objects
    every = all_questions(objects)
    chosen = []
    for index, kind in enumerate(KINDS):
        of_kind = [question for question in every if question.kind == kind]
        question = of_kind[index % len(of_kind)]  # not all about the same thing
        since = (question.subject or objects[-1]).second + 1
        chosen.append({"text": question.text, "answer": question.answer, "since": since})
    return sorted(chosen, key=lambda question: question["since"])
