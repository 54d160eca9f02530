"""``python -m experiments.train``: train the small model from random weights.

Training on answers alone does not learn to combine audio and video within a reasonable time, so
there is a curriculum: first the encoders learn to classify tokens; then the decoder learns on few
tokens of short encoded clips, with auxiliary heads on its first layers; then on all tokens of
longer clips.

A stopped run resumes from its last checkpoint, at most two minutes old.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
from experiments.training_batches import BatchSampler, BatchSpec, DecoderBatch
from experiments.training_clips import (
    EncoderBatch,
    encode_training_clips,
    encode_validation_clips,
    encoder_batch,
)
from experiments.training_losses import (
    Metrics,
    answer_tokens,
    decode_dialogues,
    decoder_loss,
    encoder_loss,
    init_model,
)
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.synthetic_clips import DIFFICULTIES


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the curriculum.

    Attributes:
        rate: highest learning rate of Muon; Adam's is a fifth of it.
        batches: of the decoder, one drawn for every step. Without any, the encoders are trained.
        auxiliary: weight of the loss of the auxiliary heads.
    """

    name: str
    steps: int
    rate: float
    batches: tuple[BatchSpec, ...] = ()
    auxiliary: float = 0.0

    @property
    def trains(self) -> tuple[str, ...]:
        """Trained parts: encoders or decoder, and the heads."""
        return ("audio", "vision", "heads") if not self.batches else ("text", "heads")


# Few sampled tokens, small batches, many steps and a low rate: retrieving an object by its name is
# learned suddenly after about 600 steps at any batch size, and not at all at three times this rate.
# These kinds of questions need little else.
LOOK_UP = ("colour of sound", "shape of sound", "sound of colour", "shape of colour")
SPARSE = BatchSpec(64, windows=(1, 2), system="")
# The sound of a colour, whether there is one, and its length are learned last.
LATE = ("sound of colour", "silent", "length", "colour of sound", "shape of colour")
ORDER = ("first", "last", "next", "colour of first or last", "sound of colour", "silent")
COUNTS = ("count", "times", "count when", "heard when", "seen when")
MIXED = (
    dataclasses.replace(SPARSE, dialogues=8, kinds=LATE),
    BatchSpec(192, clips=5, dialogues=8, windows=(1, 4), recurring=0.3, all_audio=True),
    BatchSpec(256, dialogues=8, windows=(2, 10), recurring=0.6),
    BatchSpec(
        512, clips=4, dialogues=10, windows=(4, 20), recurring=1.0, kinds=ORDER + COUNTS, weight=1.5
    ),
)
# Batches of about equal numbers of tokens; tokens of the longest clips are sampled.
ALL = (
    BatchSpec(512, clips=6, dialogues=8, windows=(1, 4), recurring=0.2),
    BatchSpec(512, clips=4, dialogues=8, rounds=2, windows=(3, 10), recurring=0.5, weight=0.5),
    BatchSpec(512, clips=4, dialogues=10, windows=(5, 150), recurring=0.8),
    BatchSpec(1024, clips=2, dialogues=16, windows=(6, 60), recurring=1.0, kinds=ORDER + COUNTS),
    BatchSpec(1280, clips=2, dialogues=16, windows=(30, 330), recurring=0.6),
    BatchSpec(2048, clips=1, dialogues=24, windows=(10, 30), recurring=0.9),
    BatchSpec(3712, clips=1, dialogues=30, windows=(20, 40), recurring=0.9, weight=0.7),
)
UNCHANGED = (
    BatchSpec(512, clips=6, dialogues=8, unchanged=True, weight=2.5),
    BatchSpec(512, clips=4, dialogues=8, rounds=2, unchanged=True, weight=0.5),
    BatchSpec(1024, clips=2, dialogues=16, windows=(6, 60), recurring=0.9, kinds=ORDER + COUNTS),
    BatchSpec(1280, clips=2, dialogues=16, windows=(30, 330), recurring=0.5),
    BatchSpec(3712, clips=1, dialogues=30, windows=(16, 40), recurring=0.9, weight=1.3),
)
CURRICULUM = (
    Stage("encoders", 1200, 1.2e-2),
    Stage("look up", 1000, 1.5e-3, (dataclasses.replace(SPARSE, kinds=LOOK_UP),), 1.0),
    Stage("few tokens", 800, 1.5e-3, (dataclasses.replace(SPARSE, dialogues=8),), 0.5),
    Stage("mixed", 700, 1.5e-3, MIXED, 0.3),
    Stage("all tokens", 450, 1.2e-3, ALL, 0.3),
    Stage("whole clips", 500, 8e-4, UNCHANGED, 0.1),
)
CHECKPOINT_SECONDS = 120
ENCODER_CLIPS = 6  # in a training step of the encoders


def learning_rate(stage: Stage) -> optax.Schedule:
    """Learning rate of Muon by step: short warm-up, cosine decay."""
    warmup = min(50, stage.steps // 10 + 1)
    return optax.warmup_cosine_decay_schedule(
        0.0, stage.rate, warmup, stage.steps, 0.02 * stage.rate
    )


def optimiser(rate: float | Float[Array, ""]) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for the rest.

    Adam alone needs about three times as many steps until shapes are recognised.
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
    """Matrix axes of every parameter, or None if Muon does not apply."""
    axes = optax.contrib.MuonDimensionNumbers

    def of(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        if names[-1] not in ("kernel", "weight") or "heads" in names or "lm_head" in names:
            return None
        if names[-1] == "weight":  # [out, in], the first of three is the layer
            return axes(leaf.ndim - 1, leaf.ndim - 2)
        return axes((0, 1), 2)  # a convolution

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
    """Parameters and optimiser state after a step, and its metrics.

    Stages with batches of the same shape share a program: their rates are arguments.
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


def initial_state(stage: Stage, params: Any) -> Any:
    """Optimiser state before the first step of a stage."""
    return optimiser(0.0).init({part: params[part] for part in stage.trains})


class Progress(NamedTuple):
    """A checkpoint: parameters, optimiser state, stage and completed steps."""

    params: Any
    optimiser: Any
    stage: int
    step: int

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")  # a stop while writing keeps the last checkpoint
        partial.write_bytes(flax.serialization.to_bytes(jax.device_get(self)))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, curriculum: Sequence[Stage], params: Any) -> Progress:
        stored: Any = flax.serialization.msgpack_restore(path.read_bytes())
        optimiser = initial_state(curriculum[stored["stage"]], params)
        restored: Any = flax.serialization.from_state_dict(cls(params, optimiser, 0, 0), stored)
        return restored


def train(
    folder: Path,
    curriculum: Sequence[Stage] = CURRICULUM,
    seed: int = 0,
    training_clips: int = 450,
    validation_clips: int = 12,
    every: int = 200,
) -> None:
    """Run the curriculum, or resume an earlier run in the same folder.

    Args:
        folder: for ``state.msgpack``, ``log.jsonl``, ``curves.png`` and, at the end, the weights
            in the released layout in ``released/``.
        seed: of parameters, clips and batches.
        training_clips: of each difficulty, encoded once for the stages of the decoder.
        validation_clips: of each difficulty.
        every: steps between two lines of the log; a checkpoint is written with each line and every
            two minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    config = ModelConfig.from_dict(small_config(tokenizer))
    params = init_model(config, seed)
    saved = folder / "state.msgpack"
    progress = Progress(params, initial_state(curriculum[0], params), 0, 0)
    if saved.is_file():
        progress = Progress.load(saved, curriculum, params)
        print(f"resuming {curriculum[progress.stage].name} at step {progress.step}", flush=True)
    sampler, validation = None, {}
    while True:
        stage = curriculum[progress.stage]
        if stage.batches and not sampler:
            print("encoding clips for the decoder", flush=True)
            clips = encode_training_clips(progress.params, config, training_clips, seed)
            sampler = BatchSampler(clips, tokenizer, config)
            unseen = encode_validation_clips(progress.params, config, validation_clips)
            validation = {
                name: BatchSampler([(DIFFICULTIES[name], clips)], tokenizer, config)
                for name, clips in unseen.items()
            }
        steps = run_stage(stage, progress, sampler, config, seed, every)
        for progress, metrics in steps:
            if metrics:
                metrics |= validate(progress.params, validation, config)
                line = {"stage": stage.name, "step": progress.step, **metrics}
                print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            progress.save(saved)
        if progress.stage + 1 == len(curriculum):
            break
        number = progress.stage + 1
        state = initial_state(curriculum[number], progress.params)
        progress = Progress(progress.params, state, number, 0)
    parts = ("audio", "vision", "text")
    export({name: progress.params[name] for name in parts}, folder / "released")
    draw_curves(folder)


def run_stage(
    stage: Stage,
    progress: Progress,
    sampler: BatchSampler | None,
    config: ModelConfig,
    seed: int,
    every: int,
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """Run the remaining steps of a stage.

    Yields checkpoints: after ``every`` steps with mean metrics, every two minutes without.
    """
    rate = learning_rate(stage)
    params, state, recent = progress.params, progress.optimiser, []
    began = saved = time.time()
    weights = np.array([spec.weight for spec in stage.batches])
    for index in range(progress.step, stage.steps):
        if sampler is None or not stage.batches:
            batch = encoder_batch(seed, index, ENCODER_CLIPS)
        else:  # seeded by the step, so that a resumed run draws the same batches
            random = np.random.default_rng([seed, progress.stage, index])
            spec = stage.batches[random.choice(len(weights), p=weights / weights.sum())]
            batch = sampler.draw(random, spec)
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
        elif time.time() - saved > CHECKPOINT_SECONDS:
            saved = time.time()
            yield Progress(params, state, progress.stage, index + 1), {}


@functools.partial(jax.jit, static_argnames="config")
def _right(params: Any, batch: DecoderBatch, config: ModelConfig) -> jax.Array:
    """Whether the first answer of each dialogue is right: [B, Q]."""
    outputs = decode_dialogues(params, batch, config)
    right, begins = answer_tokens(outputs.logits[:, :, :-1], batch)
    return jnp.any(right & begins, axis=-1)


def validate(
    params: Any, samplers: Mapping[str, BatchSampler], config: ModelConfig, batches: int = 2
) -> dict[str, float]:
    """Accuracy on validation clips with all tokens, by difficulty."""
    out = {}
    for name, sampler in samplers.items():
        long = max(DIFFICULTIES[name].windows) > 4
        clips, tokens = (2, 3712) if long else (6, 512)
        spec = BatchSpec(tokens, clips, dialogues=16, unchanged=True)
        draws = (sampler.draw(np.random.default_rng(i), spec) for i in range(batches))
        out[name] = round(float(np.mean([_right(params, batch, config) for batch in draws])), 4)
    return out


def draw_curves(folder: Path) -> Path:
    """Plot the log; returns the path of the image."""
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
    parser = argparse.ArgumentParser(description="Train the small model from random weights.")
    parser.add_argument("folder", type=Path, help="for checkpoints, log and weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
