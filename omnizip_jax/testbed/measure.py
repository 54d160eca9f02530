"""Ask the same questions with every method, and write down clip by clip which answers were right.

A file of results holds one JSON line per clip behind a line that says what was measured. A run that
was stopped goes on after the last whole line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from tqdm import tqdm

from omnizip_jax.compression import Method
from omnizip_jax.media import load_clip
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.asking import answers, prepare, text_tokens
from omnizip_jax.testbed.clips import (
    DIFFICULTIES,
    SPEC,
    Difficulty,
    Split,
    TestClip,
    clip_windows,
    make_clip,
)
from omnizip_jax.testbed.questions import FAMILIES, Question, draw_question
from omnizip_jax.testbed.rows import RANDOM_SEEDS, draws
from omnizip_jax.types import Window

CLIP_WINDOWS = 4
MEASURED = ("easy", "hard")  # what the model that comes with the package was made for
BLOCK = 8  # clips per program
FULL = "all tokens"
SWAPPED = ("sound of another clip", "picture of another clip")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One clip: what each method answered.

    Attributes:
        clip: its seed.
        kinds: of the questions, one of each family.
        right: by method, a string of 0 and 1 for each seed: whether each answer was right.
        kept: by method, audio and video tokens that entered the decoder, and that went on after
            each stage inside it, summed over the seeds.
        text: tokens of text in the prompts, on average.
    """

    clip: int
    kinds: list[str]
    right: dict[str, list[str]]
    kept: dict[str, list[list[int]]]
    text: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What every method answered.

    Attributes:
        right: of each method, whether the answer was right: [clips, seeds, families].
        kept: of each method, mean audio and video tokens that entered the decoder, and that went on
            after each of its stages.
        kinds: of the questions: [clips, families].
        text: tokens of text in a prompt, on average.
    """

    right: dict[str, Bool[np.ndarray, "clips _ families"]]
    kept: dict[str, Float[np.ndarray, "_ 2"]]
    kinds: Shaped[np.ndarray, "clips families"]
    text: float

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Measurement:
        """The trials in the order of their clips."""
        ordered = sorted(trials, key=lambda trial: trial.clip)
        right, kept = {}, {}
        for name, answered in ordered[0].right.items():
            rows = [[list(row) for row in trial.right[name]] for trial in ordered]
            right[name] = np.array(rows) == "1"
            kept[name] = np.mean([trial.kept[name] for trial in ordered], axis=0) / len(answered)
        text = float(np.mean([trial.text for trial in ordered]))
        return cls(right, kept, np.array([trial.kinds for trial in ordered]), text)


def quiz(
    seed: int, split: Split, difficulty: str, windows: int | None = None
) -> tuple[TestClip, list[Question]]:
    """The clip of a seed and one question of each family; the same seed gives the same.

    Args:
        windows: of the clip; by default one of the difficulty's lengths.
    """
    look = DIFFICULTIES[difficulty]
    clip = make_clip(seed, split, look, windows)
    # Where things come again, it is also asked when.
    seconds = len(clip.cells) if look.again > 1 else None
    random = np.random.default_rng([1, seed])
    return clip, [draw_question(clip.things, random, family, seconds) for family in FAMILIES]


def measure(
    params: Params,
    methods: Mapping[str, Method],
    clips: Iterable[int],
    difficulty: str,
    split: Split = "test",
    progress: bool = True,
) -> Iterator[Trial]:
    """Ask about clips, a block after the other.

    With "all tokens" among the methods, so are clips with the sound or the picture of another one:
    what needs both is then answered at chance, if the clip is what decides.

    Args:
        clips: their seeds; a trial comes for each, in this order among clips of equal length.
    """
    clips = list(clips)
    with tqdm(total=len(clips), desc=difficulty, unit="clip", disable=not progress) as bar:
        for block in _blocks(clips, DIFFICULTIES[difficulty]):
            yield from _measure_block(params, methods, block, difficulty, split)
            bar.update(len(block))


def _blocks(clips: Sequence[int], look: Difficulty) -> Iterator[Sequence[int]]:
    """Clips of equal length."""
    for length in look.windows:
        equal = [seed for seed in clips if clip_windows(seed, look) == length]
        for start in range(0, len(equal), BLOCK):
            yield equal[start : start + BLOCK]


def _measure_block(
    params: Params,
    methods: Mapping[str, Method],
    seeds: Sequence[int],
    difficulty: str,
    split: Split,
) -> list[Trial]:
    # A short last block is filled up, so that every block runs the same programs.
    padded = [*seeds, *[seeds[-1]] * (BLOCK - len(seeds))]
    quizzes = [quiz(seed, split, difficulty) for seed in padded]
    texts = [[question.text for question in questions] for _, questions in quizzes]
    truth = np.array(
        [[params.tokenizer.encode(q.answer)[0] for q in questions] for _, questions in quizzes]
    )
    wants = frozenset[str]().union(*(method.wants for method in methods.values()))
    windows = {seed: _windows(clip) for seed, (clip, _) in zip(padded, quizzes, strict=True)}
    asked = prepare(params, [windows[seed] for seed in padded], texts, wants)
    right: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}

    def ask(name: str, method: Method, about: Any) -> None:
        count = RANDOM_SEEDS if draws(method) else 1
        rounds = [
            answers(params, about, method, [seed * RANDOM_SEEDS + i for seed in padded])
            for i in range(count)
        ]
        right[name] = np.stack([answered.tokens == truth for answered in rounds], axis=1)
        kept[name] = np.sum([answered.kept for answered in rounds], axis=0)

    for name, method in methods.items():
        ask(name, method, asked)
    if FULL in methods:
        further = len(DIFFICULTIES[difficulty].windows)  # the next clip of this length
        for seed in padded:
            if seed + further not in windows:
                windows[seed + further] = _windows(quiz(seed + further, split, difficulty)[0])
        own, other = ([windows[seed + step] for seed in padded] for step in (0, further))
        mixed = (
            [a.replace(mel=b.mel) for a, b in zip(own, other, strict=True)],
            [a.replace(patches=b.patches) for a, b in zip(own, other, strict=True)],
        )
        for name, changed in zip(SWAPPED, mixed, strict=True):
            ask(name, methods[FULL], prepare(params, changed, texts, wants))
    return [
        Trial(
            clip=seed,
            kinds=[question.kind for question in quizzes[i][1]],
            right={
                n: ["".join(map(str, row)) for row in x[i].astype(int)] for n, x in right.items()
            },
            kept={name: x[i].tolist() for name, x in kept.items()},
            text=float(text_tokens(params, asked)[i]),
        )
        for i, seed in enumerate(seeds)
    ]


def _bits(row: Bool[np.ndarray, " families"]) -> str:
    return "".join("01"[int(bit)] for bit in row)


def _windows(clip: TestClip) -> Window:
    return load_clip(clip.arrays, SPEC).windows


def about(params: Params, methods: Mapping[str, Method], difficulty: str, split: Split) -> dict:
    """What a file of results was measured with: its first line."""
    return {
        "weights": params.fingerprint,
        "difficulty": difficulty,
        "split": split,
        "methods": {name: repr(method) for name, method in methods.items()},
    }


def resume(file: Path, header: dict) -> dict[int, Trial]:
    """The trials that a file holds already; a half-written last line is cut off.

    Raises:
        ValueError: it was measured with something else, or is no file of results.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(header) + "\n")
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    first, *lines = whole.decode().splitlines() or [""]
    try:
        there = json.loads(first)
        different = [key for key in header if there.get(key) != header[key]]
    except (ValueError, AttributeError):
        raise ValueError(f"{file} is no file of results: give another folder") from None
    if different:
        raise ValueError(
            f"{file} was measured with other {' and '.join(different)}: give another folder, or "
            "delete it to begin anew"
        )
    if whole != content:
        file.write_bytes(whole)
    trials = (Trial(**json.loads(line)) for line in lines)
    return {trial.clip: trial for trial in trials}


def measure_to(
    file: Path,
    params: Params,
    methods: Mapping[str, Method],
    clips: int,
    difficulty: str,
    split: Split = "test",
) -> Measurement:
    """``measure`` the first ``clips`` clips, going on from what the file holds.

    Raises:
        ValueError: the file was measured with something else.
    """
    done = resume(file, about(params, methods, difficulty, split))
    missing = [seed for seed in range(clips) if seed not in done]
    with file.open("a") as out:
        for trial in measure(params, methods, missing, difficulty, split):
            out.write(json.dumps(dataclasses.asdict(trial)) + "\n")
            out.flush()
            done[trial.clip] = trial
    return Measurement.of(trial for seed, trial in done.items() if seed < clips)
