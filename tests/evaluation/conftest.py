"""Synthetic clips with questions and answers, and evaluators of the small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.accuracy_questions import clip_and_questions
from omnizip_jax.compression import AllTokens, Method, OmniZipConfig
from omnizip_jax.evaluation.clip_evaluator import EvaluationSettings, Evaluator
from omnizip_jax.evaluation.protocols import PROTOCOLS
from omnizip_jax.evaluation.question_file import read_questions, write_questions

CLIPS = 3


def made_questions(
    folder: Path, clips: int = CLIPS, difficulty: str = "easy"
) -> list[dict[str, Any]]:
    """Write clips, and return a question of each family about each clip."""
    out = []
    for seed in range(clips):
        clip, questions = clip_and_questions(seed, "test", difficulty)
        clip.write(folder / f"{seed}.mp4")
        for question in questions:
            out.append(
                {
                    "id": f"{seed}/{question.family}",
                    "video": f"{seed}.mp4",
                    "question": question.text,
                    "answer": question.answer,
                    "category": question.family,
                }
            )
    return out


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Clips, ``questions.jsonl`` about them, and a question about a missing video."""
    folder = tmp_path_factory.mktemp("evaluation")
    questions = made_questions(folder)
    questions.insert(3, {"id": "gone", "video": "gone.mp4", "question": "Why?", "answer": "no"})
    write_questions(questions, folder / "questions.jsonl")
    return folder


@pytest.fixture(scope="session")
def questions(folder):
    return read_questions(folder / "questions.jsonl")


@pytest.fixture(scope="session")
def evaluator(small):
    """The small model with all tokens and with 45 %."""
    return make_evaluator(small, {"all": AllTokens(), "omnizip": OmniZipConfig(keep=0.45)})


def make_evaluator(params: Any, methods: dict[str, Method], **settings: Any) -> Evaluator:
    return Evaluator(
        params,
        EvaluationSettings(methods, PROTOCOLS["authors"], **{"max_new_tokens": 4, **settings}),
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
