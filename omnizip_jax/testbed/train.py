"""``python -m omnizip_jax.testbed.train``: train the small model from nothing.

Learning to bind sound and picture from answers alone does not begin within reasonable time, so the
curriculum leads there: first the encoders learn what is in each token; then the decoder
learns on few tokens of encoded clips, with auxiliary heads that ask its first layers what is seen
and heard in the same second; then it learns on longer clips, and at last on all tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
import optax
import optax.contrib
from matplotlib.figure import Figure

from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.testbed.batches import (
    Bank,
    DecoderBatch,
    Dialogues,
    Encode,
    EncoderBatch,
    Lesson,
    cut,
    reread,
)
from omnizip_jax.testbed.clips import (
    COLOURS,
    DIFFICULTIES,
    SHAPES,
    SLOTS_PER_WINDOW,
    SOUNDS,
    SPEC,
    Difficulty,
    Split,
    TestClip,
    Thing,
    make_clip,
    random_generator,
    render,
)
from omnizip_jax.testbed.losses import decoder_loss, encoder_loss, init_model
from omnizip_jax.testbed.model import export, small_config, small_tokenizer
from omnizip_jax.types import Window

EASY, MOVING, LONG = (DIFFICULTIES[name] for name in ("easy", "moving", "long"))
# Every third clip has crowds, small shapes on a rough backdrop, and sounds under a hiss.
ROUGH = Difficulty((2, 4), (1, 2), 2, (14, 22), (2, 5), 36, 1.2e-2, (0.03, 0.2), (0, 6))
LOOKS = (EASY, ROUGH, MOVING, LONG)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Part of the curriculum.

    Attributes:
        lesson: what the decoder reads; None trains the encoders.
        batch: clips in a step.
        rate: Muon's highest learning rate; Adam's is a fifth of it.
        auxiliary: weight of the auxiliary heads' loss.
    """

    name: str
    steps: int
    batch: int
    rate: float
    lesson: Lesson | None = None
    auxiliary: float = 0.0

    @property
    def trains(self) -> tuple[str, ...]:
        """The parameters that change: the decoder learns on encoded clips."""
        return ("audio", "vision", "heads") if self.lesson is None else ("text", "heads")


# Here the model sees selected tokens: drawn at random, more of them where something is.
SPARSE = Lesson(EASY, windows=2, video_tokens=6, audio_tokens=16, system="")
# Small batches, many steps, and a low rate: finding by its name what is among the tokens is learned
# suddenly, after some 600 steps whatever the batch, and not at all at three times this rate. These
# kinds of questions need little else.
LOOK_UP = ("colour of sound", "shape of sound", "sound of colour", "shape of colour")
# What is heard with a colour, whether anything is, and for how long, takes all tokens of the sound.
LATE = dataclasses.replace(
    SPARSE,
    video_tokens=12,
    audio_tokens=SPEC.audio_slots,
    kinds=("sound of colour", "silent", "length", "colour of sound", "shape of colour"),
)
CURRICULUM = (
    Stage("encoders", 1200, 6, 1.2e-2),
    Stage("look up", 1200, 8, 1.5e-3, dataclasses.replace(SPARSE, kinds=LOOK_UP), 1.0),
    Stage("two windows", 2000, 8, 1.5e-3, SPARSE, 0.5),
    Stage("four windows", 1200, 8, 1.5e-3, dataclasses.replace(SPARSE, windows=4), 0.2),
    # From here on all of them, but for one stage on the kinds that come last.
    Stage("all tokens", 700, 4, 1e-3, Lesson(EASY, rounds=6), 0.1),
    Stage("all sound", 1800, 8, 1.5e-3, LATE, 0.5),
    Stage("whole clips", 1200, 4, 1e-3, Lesson(EASY, rounds=6, whole=True)),
)


def make_optimiser(stage: Stage) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for the rest; rates rise briefly, fall by a cosine.

    Adam alone needs about three times as many steps before the shapes are seen.
    """
    warmup = min(50, stage.steps // 10 + 1)
    rate, adam_rate = (
        optax.warmup_cosine_decay_schedule(0.0, peak, warmup, stage.steps, 0.02 * peak)
        for peak in (stage.rate, 0.2 * stage.rate)
    )
    muon = optax.contrib.muon(
        rate,
        adam_learning_rate=adam_rate,
        adam_b2=0.99,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _matrices(params: Any) -> Any:
    """Which axes of a parameter are the rows and columns of a matrix; None where it is none."""
    axes = optax.contrib.MuonDimensionNumbers

    def of(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        if names[-1] not in ("kernel", "weight") or "heads" in names or "lm_head" in names:
            return None
        if names[-1] == "weight":  # [out, in]
            return axes(leaf.ndim - 1, leaf.ndim - 2)
        if names[-2].startswith("conv"):
            return axes((0, 1), 2)
        return axes(leaf.ndim - 2, leaf.ndim - 1)  # the first of three is the layer

    return jax.tree_util.tree_map_with_path(of, params)


def make_step(stage: Stage, config: ModelConfig) -> Callable[..., Any]:
    """One jitted step of a stage: parameters and optimiser's state in, and out with metrics."""
    optimiser = make_optimiser(stage)

    @jax.jit
    def step(params, state, batch):
        trained = {part: params[part] for part in stage.trains}

        def loss(trained):
            whole = params | trained
            if isinstance(batch, EncoderBatch):
                return encoder_loss(whole, batch, config)
            return decoder_loss(whole, batch, config, stage.auxiliary)

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, state = optimiser.update(gradient, state, trained)
        return params | optax.apply_updates(trained, updates), state, {"loss": value, **metrics}

    return step


def begin(stage: Stage, params: Any) -> Any:
    """The optimiser's state before the first step of a stage."""
    return make_optimiser(stage).init({part: params[part] for part in stage.trains})


def encoder_batch(seed: int, step: int, size: int) -> EncoderBatch:
    """Clips that no other step sees, with something to see and to hear in every second."""
    first = (seed * 10_000 + step) * 100
    return EncoderBatch.of([_busy_clip(first + i) for i in range(size)])


def _busy_clip(seed: int, windows: int = 2) -> TestClip:
    """One shape in every second, or three small ones, of which one sounds."""
    random = random_generator("train", seed)
    look, crowded = LOOKS[random.integers(len(LOOKS))], random.random() < 0.6
    if crowded:  # up to this radius there is room for another one, wherever the first ones are
        look = dataclasses.replace(look, radius=(12, 24))
    things = []
    for slot in range(windows * SLOTS_PER_WINDOW):
        colours = random.permutation(list(COLOURS))[: 3 if crowded else 1].tolist()
        shapes = random.choice(SHAPES, len(colours)).tolist()
        things.append(
            Thing(slot, colours[0], shapes[0], str(random.choice(SOUNDS)), bool(random.integers(2)))
        )
        things += [Thing(slot, *pair) for pair in zip(colours[1:], shapes[1:], strict=True)]
    return render(tuple(things), random, look, windows)


def make_encode(params: Any, config: ModelConfig) -> Encode:
    """The encoders, as a bank calls them."""
    kernels = Kernels.of(params)

    def encode(windows: Window) -> tuple[np.ndarray, np.ndarray]:
        encoded = encode_windows(params, windows, config=config, kernels=kernels)
        return np.asarray(encoded.video), np.asarray(encoded.audio.tokens)

    return encode


def make_bank(params: Any, config: ModelConfig, clips: int, seed: int, split: Split) -> Bank:
    """Encode clips; every third one is rough, every sixth goes through a file."""

    def read(index: int, clip: TestClip) -> Window:
        return reread(clip) if index % 6 == 0 else cut(clip)

    first = 10**9 * (seed + 1)
    made = (make_clip(first + i, split, ROUGH if i % 3 == 2 else EASY) for i in range(clips))
    return Bank(made, make_encode(params, config), read)


class Progress(NamedTuple):
    """All that a run needs to go on: parameters, the optimiser's state, stage and steps done."""

    params: Any
    optimiser: Any
    stage: int
    step: int

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")  # a stop while writing must not cost the run
        partial.write_bytes(flax.serialization.to_bytes(jax.device_get(self)))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, curriculum: Sequence[Stage], params: Any) -> Progress:
        stored: Any = flax.serialization.msgpack_restore(path.read_bytes())
        optimiser = begin(curriculum[stored["stage"]], params)
        restored: Any = flax.serialization.from_state_dict(cls(params, optimiser, 0, 0), stored)
        return restored


def train(
    folder: Path,
    curriculum: Sequence[Stage] = CURRICULUM,
    seed: int = 0,
    bank_clips: int = 1500,
    validation_clips: int = 120,
    every: int = 100,
) -> None:
    """Run the curriculum; goes on where an earlier run in the same folder stopped.

    Args:
        folder: for ``state.msgpack``, ``log.jsonl``, ``curves.png`` and, at the end, the weights
            in the released layout in ``released/``.
        seed: of everything random.
        bank_clips: encoded once for the decoder's stages.
        validation_clips: never trained on; from the validation seeds.
        every: steps between two lines of the log and two checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    config = ModelConfig.from_dict(small_config(tokenizer))
    params = init_model(config, seed)
    saved = folder / "state.msgpack"
    progress = Progress(params, begin(curriculum[0], params), 0, 0)
    if saved.is_file():
        progress = Progress.load(saved, curriculum, params)
        print(f"going on with {curriculum[progress.stage].name}, step {progress.step}", flush=True)
    lessons: dict[Split, Dialogues] = {}
    while True:
        stage = curriculum[progress.stage]
        if stage.lesson and not lessons:
            print("encoding clips for the decoder", flush=True)
            counts: dict[Split, int] = {"train": bank_clips, "validation": validation_clips}
            for split, clips in counts.items():
                bank = make_bank(progress.params, config, clips, seed, split)
                lessons[split] = Dialogues(bank, tokenizer, config)
        steps = run_stage(stage, progress, lessons, config, seed, every)
        for progress, means in steps:
            line = {"stage": stage.name, "step": progress.step, **means}
            print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            progress.save(saved)
        if progress.stage + 1 == len(curriculum):
            break
        number = progress.stage + 1
        optimiser = begin(curriculum[number], progress.params)
        progress = Progress(progress.params, optimiser, number, 0)
    parts = ("audio", "vision", "text")
    export({name: progress.params[name] for name in parts}, folder / "released")
    draw_curves(folder)


def run_stage(
    stage: Stage,
    progress: Progress,
    lessons: dict[Split, Dialogues],
    config: ModelConfig,
    seed: int,
    every: int,
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Do the steps of a stage that are left; yields the means of every few."""
    step = make_step(stage, config)
    params, state, began, recent = progress.params, progress.optimiser, time.time(), []
    for index in range(progress.step, stage.steps):
        if stage.lesson is None:
            batch = encoder_batch(seed, index, stage.batch)
        else:  # drawn by the number of the step, so that a resumed run sees the same
            random = np.random.default_rng([seed, progress.stage, index])
            batch = lessons["train"].draw(random, stage.lesson, stage.batch)
        params, state, metrics = step(params, state, batch)
        recent.append(metrics)
        if (index + 1) % every == 0 or index + 1 == stage.steps:
            means = {key: round(float(np.mean([m[key] for m in recent])), 4) for key in recent[0]}
            means["seconds"] = round(time.time() - began)
            if lessons:
                means["validation"] = validate(params, lessons["validation"], config)
            recent = []
            yield Progress(params, state, progress.stage, index + 1), means


@functools.partial(jax.jit, static_argnames="config")
def _right(params: Any, batch: DecoderBatch, config: ModelConfig) -> jax.Array:
    return decoder_loss(params, batch, config, 0.0)[1]["answers"]


def validate(params: Any, lessons: Dialogues, config: ModelConfig, batches: int = 2) -> float:
    """Accuracy of the first answer on whole validation clips of both difficulties, all tokens."""
    lesson = Lesson(EASY, rounds=1, whole=True)
    draws = (lessons.draw(np.random.default_rng(i), lesson, 20) for i in range(batches))
    return float(np.mean([_right(params, batch, config) for batch in draws]))


def draw_curves(folder: Path) -> Path:
    """Draw the log; returns the picture's path."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(9, 6))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.semilogy([line["loss"] for line in lines])
    upper.set_ylabel("loss")
    for name in ("colour", "shape", "sound", "answers", "validation"):
        lower.plot([line.get(name, np.nan) for line in lines], label=name)
    lower.set(xlabel="line of the log", ylabel="share right", ylim=(0, 1))
    lower.legend()
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small model from nothing.")
    parser.add_argument("folder", type=Path, help="for checkpoints, log and weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
