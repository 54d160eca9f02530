"""``python -m experiments.validation_accuracy``: accuracy of the small model on validation clips.

Accuracy by difficulty and length, and by kind of question beside the share of the commonest answer,
with all tokens and with some compression methods. A model that was not trained on enough long clips
is better with fewer tokens.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.accuracy_questions import KINDS
from experiments.batched_answers import answers, prepare
from experiments.clip_inputs import clip_to_windows
from experiments.command_line import add_checkpoint
from experiments.markdown import table
from experiments.measured_methods import FULL
from omnizip_jax.compression import AllTokens, Method, OmniZipConfig, RandomTokens
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.markdown_tables import share, with_interval
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.testbed.clip_questions import Question, all_questions, draw_questions
from omnizip_jax.testbed.synthetic_clips import DIFFICULTIES, SPEC, make_clip

# Required accuracy with all tokens: at least, and at most where more would hide differences.
GOALS = {"easy": (0.97, 1.0), "hard": (0.9, 0.97), "moving": (0.9, 0.97), "long": (0.9, 1.0)}
# Lengths in windows; the goals apply to those of ``DIFFICULTIES``.
LENGTHS = {"easy": (1, 4, 16, 30), "hard": (4, 16), "moving": (4, 16), "long": (15, 30, 60, 150)}
METHODS: dict[str, Method] = {
    FULL: AllTokens(),
    "random, 50%": RandomTokens(keep=0.5),
    "omnizip, 50%": OmniZipConfig(keep=0.5),
    "omnizip, 25%": OmniZipConfig(keep=0.25),
}
BLOCK_CLIPS = 4


class Answer(NamedTuple):
    """One question: clip, kind, true answer, and by method whether the answer was right."""

    difficulty: str
    windows: int
    clip: int
    kind: str
    truth: str
    right: dict[str, bool]


def draw(seed: int, difficulty: str, windows: int) -> tuple[Any, list[Question]]:
    """A validation clip and one question of every kind that it allows for."""
    parameters = DIFFICULTIES[difficulty]
    clip = make_clip(seed, "validation", parameters, windows)
    seconds = windows * SPEC.seconds if parameters.max_occurrences > 1 else None
    kinds = {question.kind for question in all_questions(clip.objects, seconds=seconds)}
    random = np.random.default_rng([2, seed])
    return clip, draw_questions(clip.objects, random, len(kinds), seconds=seconds)


def ask_clips(
    params: Params,
    difficulty: str,
    windows: int,
    seeds: Sequence[int],
    methods: Mapping[str, Method],
) -> Iterable[Answer]:
    """Answer the questions about clips of one length with every method."""
    for start in range(0, len(seeds), BLOCK_CLIPS):
        own = seeds[start : start + BLOCK_CLIPS]
        padded = [*own, *[own[-1]] * (BLOCK_CLIPS - len(own))]
        drawn = [draw(seed, difficulty, windows) for seed in padded]
        # Questions repeat up to the same number per clip, so that all blocks share a program.
        texts = [
            [questions[i % len(questions)].text for i in range(len(KINDS))]
            for _, questions in drawn
        ]
        prepared = prepare(params, [clip_to_windows(clip) for clip, _ in drawn], texts)
        tokens = {
            name: np.asarray(answers(params, prepared, method, padded).tokens)
            for name, method in methods.items()
        }
        for row, (seed, (_, questions)) in enumerate(zip(own, drawn, strict=False)):
            for column, question in enumerate(questions):
                truth = params.tokenizer.encode(question.answer)[0]
                right = {name: bool(x[row, column] == truth) for name, x in tokens.items()}
                yield Answer(difficulty, windows, seed, question.kind, question.answer, right)


def lengths_table(answered: Sequence[Answer]) -> str:
    """Accuracy by difficulty, length and method, with 95 % intervals over clips."""
    methods = list(answered[0].right)
    rows = []
    for (difficulty, windows), own in _by_length(answered).items():
        cells = []
        for method in methods:
            mean = _mean([a.right[method] for a in own], own)
            cells.append(with_interval({k: getattr(mean, k) for k in ("mean", "low", "high")}))
        length, clips = f"{windows * SPEC.seconds} s", str(len({a.clip for a in own}))
        rows.append([difficulty, length, clips, *cells])
    return table(["clips", "length", "number", *methods], rows)


def kinds_table(answered: Sequence[Answer]) -> str:
    """Accuracy with all tokens by kind, beside the share of the commonest true answer."""
    columns = list(_by_length(answered))
    rows = []
    for kind in KINDS:
        own = [a for a in answered if a.kind == kind]
        if own:
            cells = _by_length(own)
            rights = [share(_accuracy(cells[c]) if c in cells else None) for c in columns]
            rows.append([kind, share(commonest_share(own)), *rights])
    names = [f"{name}, {windows * SPEC.seconds} s" for name, windows in columns]
    return table(["question", "commonest answer", *names], rows)


def commonest_share(answered: Sequence[Answer]) -> float:
    """Accuracy of always giving the commonest answer."""
    truths = Counter(a.truth for a in answered)
    return max(truths.values()) / len(answered)


def missed_goals(answered: Sequence[Answer]) -> list[str]:
    """Descriptions of the goals that the answers miss."""
    out = []
    for difficulty, (least, most) in GOALS.items():
        lengths = DIFFICULTIES[difficulty].windows
        own = [a for a in answered if a.difficulty == difficulty and a.windows in lengths]
        if not own:
            continue
        if not least <= (right := _accuracy(own)) <= most:
            out.append(f"{difficulty}: {right:.1%}, expected {least:.0%} to {most:.0%}")
        for kind in KINDS:
            of_kind = [a for a in own if a.kind == kind]
            if not of_kind:
                continue
            chance, right = commonest_share(of_kind), _accuracy(of_kind)
            if right <= chance + 2 * (chance * (1 - chance) / len(of_kind)) ** 0.5:
                out.append(f"{difficulty}, {kind}: {right:.1%}, commonest answer {chance:.1%}")
    for (difficulty, windows), own in _by_length(answered).items():
        for method in answered[0].right:
            if _mean([a.right[method] - a.right[FULL] for a in own], own).low > 0:
                out.append(f"{difficulty}, {windows * SPEC.seconds} s: better with {method}")
    return out


def _by_length(answered: Sequence[Answer]) -> dict[tuple[str, int], list[Answer]]:
    out = defaultdict(list)
    for a in answered:
        out[a.difficulty, a.windows].append(a)
    return dict(out)


def _accuracy(answered: Sequence[Answer]) -> float:
    return float(np.mean([a.right[FULL] for a in answered]))


def _mean(values: Sequence[float], answered: Sequence[Answer]) -> Any:
    return mean_over([float(value) for value in values], [str(a.clip) for a in answered])


def report(answered: Sequence[Answer]) -> str:
    """Both tables and the missed goals, in Markdown."""
    missed = "; ".join(missed_goals(answered) or ["none"])
    parts = [lengths_table(answered), kinds_table(answered), f"Missed goals: {missed}."]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on validation clips.")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, default=48, help="of each difficulty and length")
    parser.add_argument("--longest", type=int, default=60, help="windows; skip longer clips")
    parser.add_argument("--difficulty", choices=list(LENGTHS), help="only this one")
    parser.add_argument("--results", type=Path, help="file for the answers, for the model card")
    arguments = parser.parse_args()
    answered: list[Answer] = []
    for difficulty in [arguments.difficulty] if arguments.difficulty else list(LENGTHS):
        for windows in (n for n in LENGTHS[difficulty] if n <= arguments.longest):
            seeds = range(arguments.clips)
            asked = ask_clips(arguments.checkpoint, difficulty, windows, seeds, METHODS)
            answered += tqdm(asked, desc=f"{difficulty}, {windows * SPEC.seconds} s")
    if arguments.results:
        arguments.results.write_text("".join(json.dumps(a._asdict()) + "\n" for a in answered))
    print(report(answered))


if __name__ == "__main__":
    main()
