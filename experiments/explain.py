"""``python -m experiments.explain``: which step dropped the tokens that a question needs.

A question about one thing needs the tokens that show it and the tokens in which it sounds. In each
window the first second goes through the spatial step (DPC-KNN) and the other one through the
temporal step, so the second in which the thing is seen tells the step.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from experiments.arguments import add_checkpoint
from experiments.asking import answers, prepare
from experiments.batches import cut
from experiments.survey import quiz
from omnizip_jax.compression import AllTokens, Method, OmniZipConfig
from omnizip_jax.evaluation import markdown_tables as tables
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.clips import DIFFICULTIES, SLOTS_PER_WINDOW, Split

STEPS = ("spatial", "temporal")


def explain(
    params: Params,
    clips: int,
    difficulty: str,
    split: Split,
    compression: Method,
) -> list[dict[str, Any]]:
    """One row for every question about one thing that full tokens answer right.

    Returns:
        "kind" of the question, "step" that thinned the thing's tokens, "right" with compression,
        and the shares of the thing's "video" and "audio" tokens that were kept; None without any.
    """
    rows = []
    choose = jax.jit(compression.select)
    for seed in tqdm(range(clips), unit="clip"):
        clip, questions = quiz(seed, split, difficulty)
        asked = prepare(params, [cut(clip)], [[question.text for question in questions]])
        full, ours = (
            answers(params, asked, method, [0]).tokens[0] for method in (AllTokens(), compression)
        )
        kept = choose(jax.tree.map(lambda x: x[0], asked.clips.windows), jax.random.key(0))
        for index, question in enumerate(questions):
            truth = params.tokenizer.encode(question.answer)[0]
            if question.thing is None or full[index] != truth:
                continue
            number = clip.things.index(question.thing)
            rows.append(
                {
                    "kind": question.kind,
                    "step": STEPS[question.thing.slot % SLOTS_PER_WINDOW],
                    "right": bool(ours[index] == truth),
                    "video": _share(np.asarray(kept.video_keep).ravel(), clip.cells == number),
                    "audio": _share(np.asarray(kept.audio_keep).ravel(), clip.active == number),
                }
            )
    return rows


def _share(kept: Float[np.ndarray, " T"], own: np.ndarray) -> float | None:
    return float(kept[own.ravel()].mean()) if own.any() else None


def table(rows: list[dict[str, Any]]) -> str:
    """By kind and step: how often the answer stays right, and what was kept of the thing."""
    heading = ["question", "step", "asked", "still right", "video kept", "audio kept"]
    heading += ["video kept, wrong", "audio kept, wrong"]
    lines = []
    for kind, step in sorted({(row["kind"], row["step"]) for row in rows}):
        these = [row for row in rows if (row["kind"], row["step"]) == (kind, step)]
        wrong = [row for row in these if not row["right"]]
        means = [_mean(group, name) for group in (these, wrong) for name in ("video", "audio")]
        right = 1 - len(wrong) / len(these)
        lines.append([kind, step, str(len(these)), f"{right:.0%}", *means])
    return tables.table(heading, lines)


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    shares = [row[name] for row in rows if row[name] is not None]
    return f"{np.mean(shares):.0%}" if shares else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description="Which step dropped what a question needs.")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(DIFFICULTIES), default="easy")
    parser.add_argument("--keep", type=float, default=0.35, help="share of the tokens")
    parser.add_argument("--paper", action="store_true", help="the paper to the letter")
    arguments = parser.parse_args()
    rows = explain(
        arguments.checkpoint,
        arguments.clips,
        arguments.difficulty,
        arguments.split,
        OmniZipConfig(keep=arguments.keep, relative_distance=not arguments.paper),
    )
    print(table(rows))


if __name__ == "__main__":
    main()
