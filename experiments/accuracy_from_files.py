"""``python -m experiments.accuracy_from_files``: accuracy on clips from mp4 files and arrays."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.accuracy_questions import QUESTION_SETS, clip_and_questions
from experiments.command_line import add_checkpoint
from experiments.markdown import table
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.evaluation.markdown_tables import share
from omnizip_jax.inference.api import generate
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.synthetic_clips import SPEC, Split

METHODS = {"all tokens": None, "omnizip, 35%": OmniZipConfig(keep=0.35)}


def compare_files(
    params: Params, clips: int, difficulty: str, split: Split = "test"
) -> dict[str, float]:
    """Accuracy of ``generate`` on arrays and on the same clips as mp4 files, by method."""
    right: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(range(clips), desc=difficulty, unit="clip"):
            clip, questions = clip_and_questions(seed, split, difficulty)
            sources = {"arrays": clip.arrays, "mp4": clip.write(Path(folder) / "clip.mp4")}
            for (kind, source), question in itertools.product(sources.items(), questions):
                for name, method in METHODS.items():
                    answer = generate(
                        params,
                        source,
                        question.text,
                        compression=method,
                        max_new_tokens=4,
                        spec=SPEC,
                    )
                    same = answer.text.strip() == question.answer
                    right.setdefault(f"{kind}, {name}", []).append(same)
    return {name: float(np.mean(values)) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on mp4 files and on arrays.")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, default=100, help="of each difficulty")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(QUESTION_SETS), help="only this one")
    arguments = parser.parse_args()
    rows = {
        name: compare_files(arguments.checkpoint, arguments.clips, name, arguments.split)
        for name in ([arguments.difficulty] if arguments.difficulty else QUESTION_SETS)
    }
    heading = ["clips", *next(iter(rows.values()))]
    print(table(heading, [[name, *map(share, row.values())] for name, row in rows.items()]))


if __name__ == "__main__":
    main()
