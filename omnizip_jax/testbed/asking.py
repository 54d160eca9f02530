"""Every method answers the same questions about the same clips, a block of clips per program.

Answers are one token, so the first token decides. The programs are those of ``generate`` and
``ask``, looped over clips on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from omnizip_jax.compression import Method
from omnizip_jax.context import Past, Reading
from omnizip_jax.generate import read_clip
from omnizip_jax.layout import bucket, geometry, padded_text, token_counts
from omnizip_jax.models.families import family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params
from omnizip_jax.prompt import DEFAULT_SYSTEM, Medium, Text, segments
from omnizip_jax.prompt import question as question_text
from omnizip_jax.staged import read_staged, stage_sizes
from omnizip_jax.testbed.clips import SPEC
from omnizip_jax.types import EncodedWindow, Window

SUFFIX = 20  # tokens after the media, at most
ENCODED_AT_ONCE = 8  # windows
BOTH = Medium(audio=True, video=True)


class Asked(struct.PyTreeNode):
    """Clips of equal shape with the questions about them, leading axis B.

    Attributes:
        encoded: the windows, [B, W, ...].
        texts, offsets, lengths: the questions, padded, with their places behind the clip, and how
            many tokens are real.
    """

    encoded: EncodedWindow
    layout: Window
    texts: Int[Array, "B Q S"]
    offsets: Int[Array, "B Q S"]
    lengths: Int[Array, "B Q"]


def encode(params: Params, clips: Sequence[Window], wants: frozenset[str]) -> EncodedWindow:
    """Clips of W windows each, encoded: leading axes [B, W]."""
    together: Any = jax.tree.map(lambda *parts: np.concatenate(parts), *clips)
    count = len(clips[0].mel_length)
    blocks = []
    for start in range(0, len(together.mel_length), ENCODED_AT_ONCE):
        block = jax.tree.map(lambda x, at=start: x[at : at + ENCODED_AT_ONCE], together)
        blocks.append(
            family(params.config).encode_windows(
                params.weights,
                block,
                config=params.config,
                kernels=Kernels.of(params.weights),
                wants=wants,
            )
        )
    whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), whole)


def prepare(
    params: Params,
    clips: Sequence[Window],
    questions: Sequence[Sequence[str]],
    wants: frozenset[str] = frozenset(),
) -> Asked:
    """Clips of equal length, and as many questions about each."""

    def padded(question: str) -> tuple[np.ndarray, np.ndarray, int]:
        text = question_text(params.tokenizer, params.config, question, BOTH)
        padding = (0, SUFFIX - len(text.tokens))
        return np.pad(text.tokens, padding), np.pad(text.offsets, padding), len(text.tokens)

    rows = [[padded(question) for question in of_clip] for of_clip in questions]
    texts, offsets, lengths = (jnp.array([[q[i] for q in row] for row in rows]) for i in range(3))
    layout: Any = jax.tree.map(lambda *parts: np.stack(parts), *[geometry(clip) for clip in clips])
    return Asked(encode(params, clips, wants), layout, texts, offsets, lengths)


def opening(params: Params) -> Text:
    """The text before a clip."""
    return segments(params.tokenizer, params.config, [BOTH, "?"], DEFAULT_SYSTEM)[0]


def text_tokens(params: Params, asked: Asked) -> Float[np.ndarray, " B"]:
    """Tokens of text in a prompt, those that open the clip included: mean over the questions."""
    markers = family(params.config).start_markers(params.config, BOTH.audio, BOTH.video)
    return len(opening(params).tokens) + len(markers) + np.asarray(asked.lengths).mean(1)


class Answered(struct.PyTreeNode):
    """What a method answered.

    Attributes:
        tokens: the first one of each answer.
        kept: audio and video tokens that entered the decoder, and that went on after each of the
            method's stages inside it (with the eyes of the first question).
    """

    tokens: Int[Array, "B Q"]
    kept: Int[Array, "B parts 2"]


def answers(params: Params, asked: Asked, method: Method, seeds: Sequence[int]) -> Answered:
    """Answer every question of every clip.

    Args:
        seeds: one for each clip, as ``generate`` takes it.

    Raises:
        ValueError: the method kept more than its bound.
    """
    config = params.config
    one = jax.tree.map(lambda x: x[0], asked.layout)
    audio, video = token_counts(one, config)
    reading = Reading(config, method, SPEC, BOTH, Kernels.of(params.weights))
    before = opening(params)
    text = len(before.tokens) + len(reading.markers)
    media = method.bound(audio, video)
    stages = method.stages(config.text.layers)
    prefix, _, length = padded_text(before.tokens)
    program = _with_stages if stages else _without_stages
    answered, lost = program(
        params.weights,
        jax.vmap(jax.random.key)(jnp.array(seeds)),
        prefix,
        length,
        asked,
        reading=reading,
        # Room for the question, whose length differs, is in every size.
        capacity=bucket(media + text + SUFFIX),
        sizes=stage_sizes(stages, text + SUFFIX, media),
    )
    if np.any(np.asarray(lost)):
        raise ValueError(f"{method} kept more tokens than its bound")
    return jax.tree.map(np.asarray, answered)


STATIC = ("reading", "capacity", "sizes")


@functools.partial(jax.jit, static_argnames=STATIC)
def _without_stages(
    weights: Any,
    keys: Key[Array, " B"],
    prefix: Array,
    length: Array,
    asked: Asked,
    *,
    reading: Reading,
    capacity: int,
    sizes: tuple[int, ...],
) -> tuple[Answered, Array]:
    """The clip is read once; the questions do not see each other."""
    config = reading.config
    decoder = family(config).bound_decoder(weights, config, reading.kernels)

    def of_clip(row: tuple[Array, Asked]) -> tuple[Answered, Array]:
        key, clip = row
        cache, past, _ = read_clip(
            weights,
            None,
            Past.nothing(capacity, None, key),
            prefix,
            length,
            clip.encoded,
            clip.layout,
            jnp.int32(clip.layout.mel_length.shape[0] - 1),
            reading=reading,
            capacity=capacity,
            fresh=True,
        )

        def answer(text: Array, offset: Array, count: Array) -> Array:
            positions = jnp.broadcast_to(past.after + offset, (3, len(text)))
            hidden, _ = decoder(decoder.embed(text), positions, cache)
            return jnp.argmax(decoder.logits(hidden[count - 1][None])[0])

        tokens = jax.vmap(answer)(clip.texts, clip.offsets, clip.lengths)
        return Answered(tokens, past.kept[None]), past.overflow

    return jax.lax.map(of_clip, (keys, asked))


@functools.partial(jax.jit, static_argnames=STATIC)
def _with_stages(
    weights: Any,
    keys: Key[Array, " B"],
    prefix: Array,
    length: Array,
    asked: Asked,
    *,
    reading: Reading,
    capacity: int,
    sizes: tuple[int, ...],
) -> tuple[Answered, Array]:
    """Clip and question are read together, once for every question."""

    def of_clip(row: tuple[Array, Asked]) -> tuple[Answered, Array]:
        key, clip = row

        def answer(question: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            _, logits, past, _, went_on, lost = read_staged(
                weights,
                Past.nothing(1, None, key),
                prefix,
                length,
                clip.encoded,
                clip.layout,
                jnp.int32(clip.layout.mel_length.shape[0] - 1),
                *question,
                reading=reading,
                capacity=capacity,
                sizes=sizes,
                room=1,
            )
            kept = jnp.concatenate([past.kept[None], went_on])
            return jnp.argmax(logits), kept, jnp.max(lost)

        tokens, kept, lost = jax.lax.map(answer, (clip.texts, clip.offsets, clip.lengths))
        return Answered(tokens, kept[0]), jnp.max(lost)

    return jax.lax.map(of_clip, (keys, asked))
