"""``python -m omnizip_jax.testbed.evaluate``: what compression costs, on clips never trained on.

Every method answers the same questions about the same test clips, one question of each family for
each clip, and is compared with full tokens pair by pair. Answers are one token, so the first token
decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from tqdm import tqdm

from omnizip_jax import prompt as prompts
from omnizip_jax.checkpoint.load import load
from omnizip_jax.compression import CompressedClip, pack
from omnizip_jax.config import OmniZipConfig
from omnizip_jax.generate import (
    bucket,
    clip_positions,
    compress,
    generate,
    interleave,
    keep_all,
)
from omnizip_jax.media import load_clip
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import bound_decoder, encode_windows
from omnizip_jax.models.text import KVCache
from omnizip_jax.testbed.clips import DIFFICULTIES, SPEC, Difficulty, Split, TestClip, make_clip
from omnizip_jax.testbed.questions import FAMILIES, Question, draw_question
from omnizip_jax.types import EncodedWindow, Window

# The paper's settings keep more than 45 and 35 % here, where 50 of 122 tokens are sound and not 50
# of 338; these keep what the names say. The last one is out of reach of the paper's rho_max.
BUDGETS: dict[str, dict[str, float]] = {
    "45 %": {"rho_audio": 0.45, "rho_video": 0.65},
    "35 %": {"rho_audio": 0.6, "rho_video": 0.71},
    "25 %": {"rho_audio": 0.72, "rho_video": 0.8, "rho_max": 0.9},
}
RANDOM_SEEDS = 5
SUFFIX = 20  # tokens after the media, at most

Choose = Callable[[EncodedWindow, OmniZipConfig, Array], CompressedClip]


def omnizip(**settings: Any) -> Choose:
    """The library's compression with some settings changed."""

    def choose(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
        return compress(encoded, dataclasses.replace(config, **settings))

    return choose


def static_rates(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
    """OmniZip without dynamic rates: every window loses the same share of its video."""
    rate = config.rho_video
    return compress(encoded, dataclasses.replace(config, rho_min=rate, rho_max=rate))


def random_tokens(encoded: EncodedWindow, config: OmniZipConfig, key: Array) -> CompressedClip:
    """As many tokens as OmniZip keeps, drawn from all."""
    clip = compress(encoded, config)
    mask = interleave(encoded.video_mask, encoded.audio.token_mask)
    count = clip.audio_keep.sum() + clip.video_keep.sum()
    keep = _highest(jax.random.uniform(key, mask.shape), mask, count)
    windows, sounds = clip.audio_keep.shape
    keep = keep.reshape(windows, -1)
    return clip.replace(
        audio=encoded.audio.tokens,
        video_keep=keep[:, :-sounds].reshape(clip.video_keep.shape),
        audio_keep=keep[:, -sounds:],
    )


def random_split(encoded: EncodedWindow, config: OmniZipConfig, key: Array) -> CompressedClip:
    """As many audio tokens and as many video tokens as OmniZip keeps, drawn from all."""
    clip = compress(encoded, config)
    of_audio, of_video = jax.random.split(key)
    audio, video = encoded.audio.token_mask, encoded.video_mask
    return clip.replace(
        audio=encoded.audio.tokens,
        audio_keep=_highest(
            jax.random.uniform(of_audio, audio.shape), audio, clip.audio_keep.sum()
        ),
        video_keep=_highest(
            jax.random.uniform(of_video, video.shape), video, clip.video_keep.sum()
        ),
    )


def temporal_only(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
    """OmniZip's audio, and the video tokens least like the one before them in the same place."""
    clip = compress(encoded, config)
    video = encoded.video.reshape(-1, *encoded.video.shape[2:])
    video = video / jnp.linalg.norm(video, axis=-1, keepdims=True)
    change = 1 - jnp.sum(video[1:] * video[:-1], axis=-1)
    change = jnp.concatenate([jnp.full_like(change[:1], jnp.inf), change])
    change = change.reshape(encoded.video_mask.shape)
    return clip.replace(video_keep=_highest(change, encoded.video_mask, clip.video_keep.sum()))


def _highest(score: Array, mask: Array, count: Array) -> Array:
    """The ``count`` entries of the mask with the highest score."""
    order = jnp.argsort(jnp.where(mask, -score, jnp.inf).ravel(), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return (rank < count).reshape(mask.shape)


def full_tokens(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
    """Everything."""
    return jax.vmap(keep_all)(encoded)


def no_sound(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
    """All of the video and none of the sound: audio-visual questions should fall to chance."""
    clip = jax.vmap(keep_all)(encoded)
    return clip.replace(audio_keep=jnp.zeros_like(clip.audio_keep))


def no_picture(encoded: EncodedWindow, config: OmniZipConfig, _: Array) -> CompressedClip:
    """All of the sound and none of the video."""
    clip = jax.vmap(keep_all)(encoded)
    return clip.replace(video_keep=jnp.zeros_like(clip.video_keep))


# Without a budget; measured once.
REFERENCES: dict[str, Choose] = {
    "full tokens": full_tokens,
    "no sound": no_sound,
    "no picture": no_picture,
}
METHODS: dict[str, Choose] = {
    "OmniZip, paper's rule (G = 3)": omnizip(),
    "OmniZip, published rule": omnizip(rule="published"),
    "OmniZip, causal": omnizip(causal=True),
    "without dynamic rates (DP)": static_rates,
    "without anchors (AC, G = 0)": omnizip(merge_size=0),
    "G = 15": omnizip(merge_size=15),
    "relative distances (not in the paper)": omnizip(relative_distance=True),
    "temporal similarity only": temporal_only,
    "random, OmniZip's split": random_split,
    "random": random_tokens,
}


@functools.partial(jax.jit, static_argnames=("choose", "compression"))
def choose_tokens(
    encoded: EncodedWindow, key: Array, choose: Choose, compression: OmniZipConfig
) -> CompressedClip:
    return choose(encoded, compression, key)


@functools.partial(jax.jit, static_argnames=("config", "capacity", "kernels"))
def first_tokens(
    weights: Any,
    encoded: EncodedWindow,
    clip: CompressedClip,
    layout: Window,
    prefix: Int[Array, "P"],
    suffixes: Int[Array, "Q S"],
    lengths: Int[Array, "Q"],
    *,
    config: ModelConfig,
    capacity: int,
    kernels: Kernels = Kernels(),  # noqa: B008 (frozen)
) -> Int[Array, "Q"]:
    """The likeliest first token of the answer to each of several questions about one clip.

    The clip is prefilled once; the questions do not see each other.
    """
    decoder = bound_decoder(weights, config, kernels)
    start = len(prefix) - 1  # the start tokens share a position, and so do the end tokens
    spots = jnp.minimum(jnp.arange(len(prefix)), start - 1)
    packed, positions, count = pack(
        jnp.concatenate([decoder.embed(prefix), interleave(encoded.video, clip.audio)]),
        jnp.concatenate(
            [jnp.tile(spots, (3, 1)), clip_positions(layout, encoded, start, config)], axis=1
        ),
        jnp.concatenate(
            [jnp.ones(len(prefix), bool), interleave(clip.video_keep, clip.audio_keep)]
        ),
        capacity,
    )
    cache = KVCache.empty(config.text, capacity + suffixes.shape[1], packed.dtype)
    _, cache = decoder(packed, positions, cache, count, fresh=True)
    after = start + len(clip.audio) * config.window_positions
    follows = after + jnp.maximum(jnp.arange(suffixes.shape[1]) - 1, 0)

    def answer(suffix: Array, length: Array) -> Array:
        decoder = bound_decoder(weights, config, kernels)
        hidden, _ = decoder(decoder.embed(suffix), jnp.tile(follows, (3, 1)), cache)
        return jnp.argmax(decoder.logits(hidden[length - 1][None])[0])

    return jax.vmap(answer)(suffixes, lengths)


def ask(
    params: Params,
    clip: TestClip,
    questions: list[str],
    methods: dict[str, tuple[Choose, OmniZipConfig]],
) -> dict[str, tuple[Int[np.ndarray, "seeds Q"], float]]:
    """What each method answers to each question, and the mean share of tokens it kept."""
    windows = load_clip(clip.arrays, SPEC).windows
    kernels = Kernels.of(params.weights)
    encoded = encode_windows(params.weights, windows, config=params.config, kernels=kernels)
    asked = [
        prompts.build(params.tokenizer, params.config, question, audio=True, video=True)
        for question in questions
    ]
    prefix = jnp.asarray(asked[0].prefix)
    suffixes = jnp.stack([np.pad(p.suffix, (0, SUFFIX - len(p.suffix))) for p in asked])
    lengths = jnp.array([len(p.suffix) for p in asked])
    layout = windows.replace(patches=None, mel=None)
    total = int(encoded.video_mask.sum() + encoded.audio.token_mask.sum())
    out = {}
    for name, (choose, compression) in methods.items():
        answers, shares = [], []
        for seed in range(RANDOM_SEEDS if choose in (random_tokens, random_split) else 1):
            kept = choose_tokens(encoded, jax.random.key(seed), choose, compression)
            count = int(kept.video_keep.sum() + kept.audio_keep.sum())
            tokens = first_tokens(
                params.weights,
                encoded,
                kept,
                layout,
                prefix,
                suffixes,
                lengths,
                config=params.config,
                kernels=kernels,
                capacity=bucket(count + len(prefix)),
            )
            answers.append(np.asarray(tokens))
            shares.append(count / total)
        out[name] = np.stack(answers), float(np.mean(shares))
    return out


def all_methods() -> dict[str, tuple[Choose, OmniZipConfig]]:
    """Every reference, and every method at every budget; random ones with several seeds."""
    out: dict[str, tuple[Choose, OmniZipConfig]] = {
        name: (choose, OmniZipConfig()) for name, choose in REFERENCES.items()
    }
    for budget, settings in BUDGETS.items():
        for name, choose in METHODS.items():
            out[f"{name} | {budget}"] = choose, OmniZipConfig(**settings)  # pyright: ignore[reportArgumentType]
    return out


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What every method answered.

    Attributes:
        right: of each method, whether the answer was right: [clips, seeds, families].
        kept: of each method, the mean share of tokens kept.
        kinds: of the questions: [clips, families].
    """

    right: dict[str, Bool[np.ndarray, "clips seeds families"]]
    kept: dict[str, float]
    kinds: Shaped[np.ndarray, "clips families"]


def quiz(
    seed: int, split: Split, difficulty: Difficulty, windows: int = 4
) -> tuple[TestClip, list[Question]]:
    """The clip of a seed and one question of each family; the same seed gives the same."""
    clip = make_clip(seed, split, difficulty, windows)
    random = np.random.default_rng([1, seed])
    return clip, [draw_question(clip.things, random, family) for family in FAMILIES]


def evaluate(
    params: Params,
    clips: int,
    difficulty: Difficulty,
    split: Split = "test",
    methods: dict[str, tuple[Choose, OmniZipConfig]] | None = None,
) -> Measurement:
    """Ask the same questions about the same clips with every method; None for all of them.

    With "full tokens" among them, so are clips with the sound or the picture of another one: what
    needs both is then answered at chance, if the clip is what decides.
    """
    methods = all_methods() if methods is None else methods
    right: dict[str, list[np.ndarray]] = {}
    kept: dict[str, list[float]] = {}
    kinds = []
    for seed in tqdm(range(clips), unit="clip"):
        clip, questions = quiz(seed, split, difficulty)
        truth = [params.tokenizer.encode(question.answer)[0] for question in questions]
        texts = [question.text for question in questions]
        answered = ask(params, clip, texts, methods)
        if "full tokens" in methods:
            other, _ = quiz(seed + 1, split, difficulty)
            for name, changed in {
                "sound of another clip": dataclasses.replace(clip, waveform=other.waveform),
                "picture of another clip": dataclasses.replace(clip, frames=other.frames),
            }.items():
                full = methods["full tokens"]
                answered |= ask(params, changed, texts, {name: full})
        for name, (answers, share) in answered.items():
            right.setdefault(name, []).append(answers == np.array(truth))
            kept.setdefault(name, []).append(share)
        kinds.append([question.kind for question in questions])
    means = {name: float(np.mean(shares)) for name, shares in kept.items()}
    stacked = {name: np.stack(values) for name, values in right.items()}
    return Measurement(stacked, means, np.array(kinds))


def compare_files(
    params: Params, clips: int, difficulty: Difficulty, split: Split = "test"
) -> dict[str, float]:
    """Accuracy of ``generate`` on arrays, and on the same clips written to mp4 files."""
    right: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(range(clips), unit="clip"):
            clip, questions = quiz(seed, split, difficulty)
            sources = {"arrays": clip.arrays, "mp4": clip.write(Path(folder) / "clip.mp4")}
            for (kind, source), question in itertools.product(sources.items(), questions):
                for name, compression in {
                    "all tokens": None,
                    "45 %": OmniZipConfig(**BUDGETS["45 %"]),  # pyright: ignore[reportArgumentType]
                }.items():
                    answer = generate(
                        params,
                        source,
                        question.text,
                        compression=compression,
                        max_new_tokens=4,
                        spec=SPEC,
                    )
                    same = answer.text.strip() == question.answer
                    right.setdefault(f"{kind}, {name}", []).append(same)
    return {name: float(np.mean(values)) for name, values in right.items()}


def interval(
    values: Float[np.ndarray, "clips"], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean over clips."""
    random = np.random.default_rng(seed)
    picks = random.integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def table(measured: Measurement) -> str:
    """Accuracy by family, and the difference from full tokens with its interval, in Markdown."""
    heading = ["method", "kept", *FAMILIES, "all", f"{FAMILIES[0]}, minus full", "all, minus full"]
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1)]
    full = measured.right["full tokens"]
    for name, values in measured.right.items():
        lines.append(
            [
                name.replace(" | ", ", "),
                f"{measured.kept[name]:.1%}",
                *(f"{share:.1%}" for share in values.mean((0, 1))),
                f"{values.mean():.1%}",
                _difference(values[..., 0].mean(1) - full[..., 0].mean(1)),
                _difference(values.mean((1, 2)) - full.mean((1, 2))),
            ]
        )
    return markdown(lines)


def table_by_kind(measured: Measurement, budget: str) -> str:
    """Accuracy by kind of question, of full tokens and of every method at a budget."""
    kinds = sorted(set(measured.kinds.ravel().tolist()))
    lines = [["method", *kinds], ["---"] + ["---:"] * len(kinds)]
    for name, values in measured.right.items():
        if name.endswith(budget) or " | " not in name:
            shares = (values.mean(1)[measured.kinds == kind].mean() for kind in kinds)
            lines.append([name.replace(" | ", ", "), *(f"{share:.0%}" for share in shares)])
    return markdown(lines)


def _difference(values: Float[np.ndarray, "clips"]) -> str:
    low, high = interval(values)
    return f"{100 * values.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is the heading, the second the alignment."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What compression costs, on test clips.")
    parser.add_argument(
        "--checkpoint", default="small", help="converted checkpoint, or the one that comes along"
    )
    parser.add_argument("--clips", type=int, default=1000, help="of each difficulty")
    parser.add_argument("--files", type=int, default=200, help="of them, also read from mp4 files")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(DIFFICULTIES), help="only this one")
    parser.add_argument("--results", type=Path, help="write every answer to this JSON file")
    arguments = parser.parse_args()
    params = load(arguments.checkpoint, dtype="float32")
    everything = {}
    for name in [arguments.difficulty] if arguments.difficulty else DIFFICULTIES:
        measured = evaluate(params, arguments.clips, DIFFICULTIES[name], arguments.split)
        print(f"\n{name}, {arguments.clips} {arguments.split} clips\n\n{table(measured)}")
        for budget in BUDGETS:
            print(f"\n{name}, {budget}, by kind\n\n{table_by_kind(measured, budget)}")
        files = compare_files(params, arguments.files, DIFFICULTIES[name], arguments.split)
        print(f"\n{name}, {arguments.files} clips through generate:")
        print(", ".join(f"{kind} {share:.1%}" for kind, share in files.items()), flush=True)
        right = {method: values.astype(int).tolist() for method, values in measured.right.items()}
        everything[name] = {"right": right, "kinds": measured.kinds.tolist(), "files": files}
    if arguments.results:
        arguments.results.write_text(json.dumps(everything))


if __name__ == "__main__":
    main()
