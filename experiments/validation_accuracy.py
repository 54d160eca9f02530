"""``python -m experiments.validation_accuracy``: accuracy of the small model on validation clips.

Validation clips with all tokens: by difficulty and length, and by kind of question beside the best
that somebody could do who neither sees nor hears. Then the same with fewer tokens, for a model that
was not shown enough long clips is confused by many of them.
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

from experiments.batched_answers import answers, prepare
from experiments.commands import add_checkpoint
from experiments.training_batches import cut
from omnizip_jax.compression import AllTokens, Method, OmniZipConfig, RandomTokens
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.markdown_tables import share, table, with_interval
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.clip_questions import KINDS, Question, all_questions, draw_questions
from omnizip_jax.testbed.synthetic_clips import DIFFICULTIES, SPEC, make_clip

# Share of right answers with all tokens: at least, and at most where more would hide differences.
GOALS = {"easy": (0.97, 1.0), "hard": (0.9, 0.97), "moving": (0.9, 0.97), "long": (0.9, 1.0)}
# Windows of the clips of each difficulty; the goals are for the lengths that it has by itself.
LENGTHS = {"easy": (1, 4, 16, 30), "hard": (4, 16), "moving": (4, 16), "long": (15, 30, 60, 150)}
FULL = "all tokens"
METHODS: dict[str, Method] = {
    FULL: AllTokens(),
    "random, 50%": RandomTokens(keep=0.5),
    "omnizip, 50%": OmniZipConfig(keep=0.5),
    "omnizip, 25%": OmniZipConfig(keep=0.25),
}
CLIPS_TOGETHER = 4
MOST_QUESTIONS = len(KINDS)


class Answer(NamedTuple):
    """One answered question: what is written down of it."""

    difficulty: str
    windows: int
    clip: int
    kind: str
    truth: str
    right: dict[str, bool]


def draw(seed: int, difficulty: str, windows: int) -> tuple[Any, list[Question]]:
    """A validation clip, and one question of every kind that can be asked about it."""
    look = DIFFICULTIES[difficulty]
    clip = make_clip(seed, "validation", look, windows)
    seconds = windows * SPEC.seconds if look.max_occurrences > 1 else None
    kinds = {question.kind for question in all_questions(clip.objects, seconds=seconds)}
    random = np.random.default_rng([2, seed])
    return clip, draw_questions(clip.objects, random, len(kinds), seconds=seconds)


def ask(
    params: Params,
    difficulty: str,
    windows: int,
    seeds: Sequence[int],
    methods: Mapping[str, Method],
) -> Iterable[Answer]:
    """Ask about clips of one length, a few at a time, with every method."""
    for start in range(0, len(seeds), CLIPS_TOGETHER):
        own = seeds[start : start + CLIPS_TOGETHER]
        padded = [*own, *[own[-1]] * (CLIPS_TOGETHER - len(own))]
        drawn = [draw(seed, difficulty, windows) for seed in padded]
        # As many questions about each clip, so that every block runs the same program.
        texts = [
            [questions[i % len(questions)].text for i in range(MOST_QUESTIONS)]
            for _, questions in drawn
        ]
        asked = prepare(params, [cut(clip) for clip, _ in drawn], texts)
        said = {
            name: np.asarray(answers(params, asked, method, padded).tokens)
            for name, method in methods.items()
        }
        for row, (seed, (_, questions)) in enumerate(zip(own, drawn, strict=False)):
            for column, question in enumerate(questions):
                truth = params.tokenizer.encode(question.answer)[0]
                right = {name: bool(x[row, column] == truth) for name, x in said.items()}
                yield Answer(difficulty, windows, seed, question.kind, question.answer, right)


def goals_table(answered: Sequence[Answer]) -> str:
    """Right answers by difficulty, length and method, with 95 % intervals over clips."""
    methods = list(answered[0].right)
    rows = []
    for difficulty, windows in dict.fromkeys((a.difficulty, a.windows) for a in answered):
        own = [a for a in answered if (a.difficulty, a.windows) == (difficulty, windows)]
        length = f"{windows * SPEC.seconds} s"
        shares = [with_interval(_mean(own, method)) for method in methods]
        rows.append([difficulty, length, str(len({a.clip for a in own})), *shares])
    return table(["clips", "length", "number", *methods], rows)


def kinds_table(answered: Sequence[Answer]) -> str:
    """Right answers with all tokens by kind, beside the share of the commonest true answer."""
    columns = list(dict.fromkeys((a.difficulty, a.windows) for a in answered))
    rows = []
    for kind in KINDS:
        own = [a for a in answered if a.kind == kind]
        if not own:
            continue
        video_objects: dict[Any, list[Answer]] = defaultdict(list)
        for a in own:
            video_objects[a.difficulty, a.windows].append(a)
        rights = [share(_right(video_objects[c]) if c in video_objects else None) for c in columns]
        rows.append([kind, share(blind(own)), *rights])
    names = [f"{name}, {windows * SPEC.seconds} s" for name, windows in columns]
    return table(["question", "blind", *names], rows)


def blind(answered: Sequence[Answer]) -> float:
    """The share of right answers of one who always gives the commonest."""
    truths = Counter(a.truth for a in answered)
    return max(truths.values()) / len(answered)


def unmet(answered: Sequence[Answer]) -> list[str]:
    """Which goals were not met, in words."""
    out = []
    for difficulty, (least, most) in GOALS.items():
        lengths = DIFFICULTIES[difficulty].windows
        own = [a for a in answered if a.difficulty == difficulty and a.windows in lengths]
        if not own:
            continue
        if not least <= (right := _right(own)) <= most:
            out.append(f"{difficulty}: {right:.1%}, wanted {least:.0%} to {most:.0%}")
        for kind in KINDS:
            of_kind = [a for a in own if a.kind == kind]
            # Two standard errors above the blind one's share.
            if (
                of_kind
                and _right(of_kind)
                <= (chance := blind(of_kind)) + 2 * (chance * (1 - chance) / len(of_kind)) ** 0.5
            ):
                out.append(f"{difficulty}, {kind}: {_right(of_kind):.1%}, blind {chance:.1%}")
    for difficulty, windows in dict.fromkeys((a.difficulty, a.windows) for a in answered):
        own = [a for a in answered if (a.difficulty, a.windows) == (difficulty, windows)]
        for method in answered[0].right:
            fewer = [{FULL: a.right[method]} for a in own]
            gain = [float(f[FULL]) - a.right[FULL] for f, a in zip(fewer, own, strict=True)]
            if mean_over(gain, [str(a.clip) for a in own]).low > 0:
                out.append(f"{difficulty}, {windows * SPEC.seconds} s: better with {method}")
    return out


def _right(answered: Sequence[Answer], method: str = FULL) -> float:
    return float(np.mean([a.right[method] for a in answered]))


def _mean(answered: Sequence[Answer], method: str) -> dict[str, float]:
    values = [float(a.right[method]) for a in answered]
    mean = mean_over(values, [str(a.clip) for a in answered])
    return {name: getattr(mean, name) for name in ("mean", "low", "high")}


def report(answered: Sequence[Answer]) -> str:
    """Tables in Markdown, and what is missing."""
    missing = unmet(answered) or ["nothing"]
    parts = [goals_table(answered), kinds_table(answered), "Not met: " + "; ".join(missing) + "."]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a model know its clips?")
    add_checkpoint(parser)
    parser.add_argument("--clips", type=int, default=48, help="of each difficulty and length")
    parser.add_argument(
        "--longest", type=int, default=60, help="windows; longer clips are left out"
    )
    parser.add_argument("--difficulty", choices=list(LENGTHS), help="only this one")
    parser.add_argument("--all-tokens", action="store_true", help="with all tokens alone")
    parser.add_argument("--results", type=Path, help="file for every answer")
    arguments = parser.parse_args()
    params = arguments.checkpoint
    methods = {FULL: METHODS[FULL]} if arguments.all_tokens else METHODS
    answered: list[Answer] = []
    for difficulty in [arguments.difficulty] if arguments.difficulty else list(LENGTHS):
        for windows in (n for n in LENGTHS[difficulty] if n <= arguments.longest):
            asked = ask(params, difficulty, windows, range(arguments.clips), methods)
            answered += tqdm(asked, desc=f"{difficulty}, {windows * SPEC.seconds} s")
    if arguments.results:
        arguments.results.write_text("".join(json.dumps(a._asdict()) + "\n" for a in answered))
    print(report(answered))


if __name__ == "__main__":
    main()
