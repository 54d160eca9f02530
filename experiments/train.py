"""``python -m experiments.train``: train the small model from nothing.

Learning to bind sound and picture from answers alone does not begin within reasonable time, so the
curriculum leads there: first the encoders learn what is in each token; then the decoder
learns on few tokens of short encoded clips, with auxiliary heads that ask its first layers what is
seen and heard in the same second; then clips grow longer, and at last all tokens of them are read.

A run that was stopped, by whatever, goes on from where it stood two minutes before at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from experiments.small_model_export import export, small_config, small_tokenizer
from experiments.training_batches import (
    Bank,
    DecoderBatch,
    Dialogues,
    Encode,
    EncoderBatch,
    Lesson,
    cut,
    reread,
)
from experiments.training_losses import (
    Metrics,
    decoder_loss,
    encoder_loss,
    first_answers,
    init_model,
    read_dialogues,
)
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows
from omnizip_jax.testbed.synthetic_clips import (
    COLOURS,
    DIFFICULTIES,
    SHAPES,
    SOUNDS,
    SPEC,
    ClipObject,
    Difficulty,
    SyntheticClip,
    default_windows,
    make_clip,
    random_generator,
    render,
)
from omnizip_jax.types import Window

EASY, MOVING, LONG = (DIFFICULTIES[name] for name in ("easy", "moving", "long"))
# Every third clip has crowds, small shapes on a rough backdrop, and sounds under a hiss.
ROUGH = Difficulty((2, 4), (1, 2), 2, (14, 22), (2, 5), 36, 1.2e-2, (0.03, 0.2), (0, 6))
LOOKS = (EASY, ROUGH, MOVING, LONG)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Part of the curriculum.

    Attributes:
        rate: Muon's highest learning rate; Adam's is a fifth of it.
        lessons: what the decoder reads, a different one in every step; without any, the encoders
            are trained.
        auxiliary: weight of the auxiliary heads' loss.
    """

    name: str
    steps: int
    rate: float
    lessons: tuple[Lesson, ...] = ()
    auxiliary: float = 0.0

    @property
    def trains(self) -> tuple[str, ...]:
        """The parameters that change: the decoder learns on encoded clips."""
        return ("audio", "vision", "heads") if not self.lessons else ("text", "heads")


# Few tokens, drawn at random, more of them where something is. Small batches, many steps, and a low
# rate: finding by its name what is among the tokens is learned suddenly, after some 600 steps
# whatever the batch, and not at all at three times this rate. These kinds of questions need little
# else.
LOOK_UP = ("colour of sound", "shape of sound", "sound of colour", "shape of colour")
SPARSE = Lesson(64, windows=(1, 2), system="")
# What is heard with a colour, whether anything is, and for how long, is learned last.
LATE = ("sound of colour", "silent", "length", "colour of sound", "shape of colour")
ORDER = ("first", "last", "next", "colour of first or last", "sound of colour", "silent")
COUNTS = ("count", "times", "count when", "heard when", "seen when")
MIXED = (
    dataclasses.replace(SPARSE, rows=8, kinds=LATE),
    Lesson(192, clips=5, rows=8, windows=(1, 4), again=0.3, all_sound=True),
    Lesson(256, rows=8, windows=(2, 10), again=0.6),
    Lesson(512, clips=4, rows=10, windows=(4, 20), again=1.0, kinds=ORDER + COUNTS, share=1.5),
)
# About as many tokens in a batch of any of these; the longest clips are cut to their slots.
ALL = (
    Lesson(512, clips=6, rows=8, windows=(1, 4), again=0.2),
    Lesson(512, clips=4, rows=8, rounds=2, windows=(3, 10), again=0.5, share=0.5),
    Lesson(512, clips=4, rows=10, windows=(5, 150), again=0.8),
    Lesson(1024, clips=2, rows=16, windows=(6, 60), again=1.0, kinds=ORDER + COUNTS),
    Lesson(1280, clips=2, rows=16, windows=(30, 330), again=0.6),
    Lesson(2048, clips=1, rows=24, windows=(10, 30), again=0.9),
    Lesson(3712, clips=1, rows=30, windows=(20, 40), again=0.9, share=0.7),
)
WHOLE = (
    Lesson(512, clips=6, rows=8, whole=True, share=2.5),
    Lesson(512, clips=4, rows=8, rounds=2, whole=True, share=0.5),
    Lesson(1024, clips=2, rows=16, windows=(6, 60), again=0.9, kinds=ORDER + COUNTS),
    Lesson(1280, clips=2, rows=16, windows=(30, 330), again=0.5),
    Lesson(3712, clips=1, rows=30, windows=(16, 40), again=0.9, share=1.3),
)
CURRICULUM = (
    Stage("encoders", 1200, 1.2e-2),
    Stage("look up", 1000, 1.5e-3, (dataclasses.replace(SPARSE, kinds=LOOK_UP),), 1.0),
    Stage("few tokens", 800, 1.5e-3, (dataclasses.replace(SPARSE, rows=8),), 0.5),
    Stage("mixed", 700, 1.5e-3, MIXED, 0.3),
    Stage("all tokens", 450, 1.2e-3, ALL, 0.3),
    Stage("whole clips", 500, 8e-4, WHOLE, 0.1),
)
SAVED_EVERY = 120  # seconds, at least
ENCODED_TOGETHER = 6  # clips in a step that trains the encoders


def learning_rate(stage: Stage) -> optax.Schedule:
    """Muon's, of a step: rises briefly, falls by a cosine."""
    warmup = min(50, stage.steps // 10 + 1)
    return optax.warmup_cosine_decay_schedule(
        0.0, stage.rate, warmup, stage.steps, 0.02 * stage.rate
    )


def optimiser(rate: float | Float[Array, ""]) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for the rest.

    Adam alone needs about three times as many steps before the shapes are seen.
    """
    muon = optax.contrib.muon(
        rate,
        adam_learning_rate=0.2 * rate,
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


@functools.partial(jax.jit, static_argnames=("trains", "config"))
def train_step(
    params: Any,
    state: Any,
    batch: EncoderBatch | DecoderBatch,
    rate: Float[Array, ""],
    auxiliary: Float[Array, ""],
    *,
    trains: tuple[str, ...],
    config: ModelConfig,
) -> tuple[Any, Any, Metrics]:
    """Parameters and optimiser's state after a batch, and its metrics.

    What differs between stages is an argument: those that read batches of one shape share a
    program.
    """
    trained = {part: params[part] for part in trains}

    def loss(trained):
        whole = params | trained
        if isinstance(batch, EncoderBatch):
            return encoder_loss(whole, batch, config)
        return decoder_loss(whole, batch, config, auxiliary)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, state = optimiser(rate).update(gradient, state, trained)
    return params | optax.apply_updates(trained, updates), state, {"loss": value, **metrics}


def begin(stage: Stage, params: Any) -> Any:
    """The optimiser's state before the first step of a stage."""
    return optimiser(0.0).init({part: params[part] for part in stage.trains})


def encoder_batch(seed: int, step: int, size: int) -> EncoderBatch:
    """Clips that no other step sees, with something to see and to hear in every second."""
    first = (seed * 10_000 + step) * 100
    return EncoderBatch.of([_busy_clip(first + i) for i in range(size)])


def _busy_clip(seed: int, windows: int = 2) -> SyntheticClip:
    """One shape in every second, or three small ones, of which one sounds."""
    random = random_generator("train", seed)
    look, crowded = LOOKS[random.integers(len(LOOKS))], random.random() < 0.6
    if crowded:  # up to this radius there is room for another one, wherever the first ones are
        look = dataclasses.replace(look, radius=(12, 24))
    objects = []
    for second in range(windows * SPEC.seconds):
        colours = random.permutation(list(COLOURS))[: 3 if crowded else 1].tolist()
        shapes = random.choice(SHAPES, len(colours)).tolist()
        objects.append(
            ClipObject(
                second, colours[0], shapes[0], str(random.choice(SOUNDS)), bool(random.integers(2))
            )
        )
        objects += [ClipObject(second, *pair) for pair in zip(colours[1:], shapes[1:], strict=True)]
    return render(tuple(objects), random, look, windows)


def make_encode(params: Any, config: ModelConfig) -> Encode:
    """The encoders, as a bank calls them."""
    backend = Backend.of(params)

    def encode(windows: Window) -> tuple[np.ndarray, np.ndarray]:
        encoded = encode_windows(params, windows, config=config, backend=backend)
        return np.asarray(encoded.video), np.asarray(encoded.audio.tokens)

    return encode


def make_banks(
    params: Any, config: ModelConfig, clips: int, seed: int
) -> list[tuple[Difficulty, Bank]]:
    """Encode clips of every look that is trained on.

    A third of them are what a difficulty draws, every sixth of these written to a file and read
    again. The others show and play every combination, and every fourth of them is cut as a stream
    might be.
    """

    def read(index: int, clip: SyntheticClip) -> Window:
        if index < clips // 3:
            return reread(clip) if index % 6 == 0 else cut(clip)
        return cut(clip, live=index % 4 == 0)

    encode, banks = make_encode(params, config), []
    for number, look in enumerate(LOOKS):
        first = 10**9 * (seed + 1) + number * 10**6
        random = random_generator("train", first)
        plots = _every_content(random, look.max_silent, clips - clips // 3)
        further = 30 if look.max_occurrences > 1 else 8  # windows of every tenth clip
        made = itertools.chain(
            (
                make_clip(first + 1 + i, "train", look, 4 if i % 10 else further)
                for i in range(clips // 3)
            ),
            (render(plot, random, look, 4) for plot in plots),
        )
        banks.append((look, Bank(made, encode, read, consistent=clips // 3)))
    return banks


def _every_content(
    random: np.random.Generator, crowd: int, clips: int
) -> Iterator[tuple[ClipObject, ...]]:
    """What happens in clips of four windows that share out what a window can sound like."""
    kinds = [None, *itertools.product(SOUNDS, (False, True))]
    pairs = list(itertools.product(kinds, kinds)) + [(None, None)] * 70
    order = [random.permutation(len(pairs)) for _ in range(4 * clips // len(pairs) + 1)]
    deck = [pairs[i] for i in np.concatenate(order)]
    for clip in range(clips):
        objects = []
        for window in range(4):
            for second, sound in enumerate(deck[4 * clip + window]):
                count = 1 if sound else random.integers(crowd + 1)
                colours = random.permutation(list(COLOURS))[:count].tolist()
                objects += [
                    ClipObject(
                        2 * window + second, colour, str(random.choice(SHAPES)), *(sound or ())
                    )
                    for colour in colours
                ]
        yield tuple(objects)


def validation_banks(params: Any, config: ModelConfig, clips: int) -> dict[str, Bank]:
    """Encoded clips of every difficulty that no training sees; long ones up to a minute."""
    encode, banks = make_encode(params, config), {}
    for name, look in DIFFICULTIES.items():
        lengths = [min(default_windows(i, look), 30) for i in range(clips)]
        made = (make_clip(i, "validation", look, windows) for i, windows in enumerate(lengths))
        banks[name] = Bank(made, encode)
    return banks


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
    bank_clips: int = 450,
    validation_clips: int = 12,
    every: int = 200,
) -> None:
    """Run the curriculum; goes on where an earlier run in the same folder stopped.

    Args:
        folder: for ``state.msgpack``, ``log.jsonl``, ``curves.png`` and, at the end, the weights
            in the released layout in ``released/``.
        seed: of everything random.
        bank_clips: of each look, encoded once for the decoder's stages.
        validation_clips: of each difficulty, never trained on; from the validation seeds.
        every: steps between two lines of the log; checkpoints come with them and every two minutes.
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
    lessons, unseen = None, {}
    while True:
        stage = curriculum[progress.stage]
        if stage.lessons and not lessons:
            print("encoding clips for the decoder", flush=True)
            banks = make_banks(progress.params, config, bank_clips, seed)
            lessons = Dialogues(banks, tokenizer, config)
            unseen = {
                name: Dialogues([(DIFFICULTIES[name], bank)], tokenizer, config)
                for name, bank in validation_banks(
                    progress.params, config, validation_clips
                ).items()
            }
        steps = run_stage(stage, progress, lessons, config, seed, every)
        for progress, means in steps:
            if not means:
                progress.save(saved)
                continue
            means |= validate(progress.params, unseen, config)
            line = {"stage": stage.name, "step": progress.step, **means}
            print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            progress.save(saved)
        if progress.stage + 1 == len(curriculum):
            break
        number = progress.stage + 1
        state = begin(curriculum[number], progress.params)
        progress = Progress(progress.params, state, number, 0)
    parts = ("audio", "vision", "text")
    export({name: progress.params[name] for name in parts}, folder / "released")
    draw_curves(folder)


def run_stage(
    stage: Stage,
    progress: Progress,
    lessons: Dialogues | None,
    config: ModelConfig,
    seed: int,
    every: int,
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Do the steps of a stage that are left.

    Yields the means of every few steps, and in between, every few minutes, none.
    """
    rate = learning_rate(stage)
    params, state, recent = progress.params, progress.optimiser, []
    began = saved = time.time()
    shares = np.array([lesson.share for lesson in stage.lessons])
    for index in range(progress.step, stage.steps):
        if lessons is None or not stage.lessons:
            batch = encoder_batch(seed, index, ENCODED_TOGETHER)
        else:  # drawn by the number of the step, so that a resumed run sees the same
            random = np.random.default_rng([seed, progress.stage, index])
            lesson = stage.lessons[random.choice(len(shares), p=shares / shares.sum())]
            batch = lessons.draw(random, lesson)
        params, state, metrics = train_step(
            params,
            state,
            batch,
            jnp.asarray(rate(index)),
            jnp.asarray(stage.auxiliary),
            trains=stage.trains,
            config=config,
        )
        recent.append(metrics)
        if (index + 1) % every == 0 or index + 1 == stage.steps:
            means = {key: round(float(np.mean([m[key] for m in recent])), 4) for key in recent[0]}
            means["seconds"] = round(time.time() - began)
            recent, saved = [], time.time()
            yield Progress(params, state, progress.stage, index + 1), means
        elif time.time() - saved > SAVED_EVERY:
            saved = time.time()
            yield Progress(params, state, progress.stage, index + 1), {}


@functools.partial(jax.jit, static_argnames="config")
def _right(params: Any, batch: DecoderBatch, config: ModelConfig) -> jax.Array:
    """Whether the answer that begins each dialogue is right: [B, Q]."""
    right, begins = first_answers(read_dialogues(params, batch, config).logits[:, :, :-1], batch)
    return jnp.any(right & begins, axis=-1)


def validate(
    params: Any, unseen: Mapping[str, Dialogues], config: ModelConfig, batches: int = 2
) -> dict[str, float]:
    """Accuracy on whole validation clips with all tokens, by difficulty."""
    out = {}
    for name, lessons in unseen.items():
        long = max(DIFFICULTIES[name].windows) > 4
        lesson = Lesson(3712 if long else 512, clips=2 if long else 6, rows=16, whole=True)
        draws = (lessons.draw(np.random.default_rng(i), lesson) for i in range(batches))
        out[name] = round(float(np.mean([_right(params, batch, config) for batch in draws])), 4)
    return out


def draw_curves(folder: Path) -> Path:
    """Draw the log; returns the picture's path."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.semilogy([line["loss"] for line in lines])
    upper.set_ylabel("loss")
    for name in ("colour", "shape", "sound", "answers", *DIFFICULTIES):
        known = [at for at, line in enumerate(lines) if name in line]
        lower.plot(known, [lines[at][name] for at in known], label=name)
    lower.set(xlabel="line of the log", ylabel="share right", ylim=(0, 1))
    figure.legend(loc="outside right upper")
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
