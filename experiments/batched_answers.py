"""Answers to questions about a block of clips in one program.

Answers are one token. The program is that of ``generate`` and ``ask``, looped over clips on the
device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Key

from omnizip_jax.compression import Budget, Method
from omnizip_jax.inference.chat_template import Modalities, Text, segments
from omnizip_jax.inference.chat_template import question as question_text
from omnizip_jax.inference.context import PrefillConfig, StreamState
from omnizip_jax.inference.prefill import Pruning, prefill_clip
from omnizip_jax.inference.sequence import (
    CACHE_BUCKETS,
    PaddedText,
    bucket,
    geometry,
    pad_text,
    token_counts,
)
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import family
from omnizip_jax.testbed.synthetic_clips import SPEC
from omnizip_jax.types import EncodedClip, EncodedWindow, Window

SUFFIX = 20  # tokens after the media, at most
ENCODED_AT_ONCE = 8  # windows
BOTH = Modalities(audio=True, video=True)


class Asked(struct.PyTreeNode):
    """Clips of equal shape, leading axis B, and the same number of questions about each: [B, Q]."""

    clips: EncodedClip
    questions: PaddedText


class Answered(struct.PyTreeNode):
    """Answers of a method.

    Attributes:
        tokens: the first one of each answer.
        kept: audio and video tokens that entered the decoder, and that went on after each of the
            method's stages inside it (when the first question is asked).
    """

    tokens: Int[Array, "B Q"]
    kept: Int[Array, "B parts 2"]


def prepare(
    params: Params,
    clips: Sequence[Window],
    questions: Sequence[Sequence[str]],
    wants: frozenset[str] = frozenset(),
) -> Asked:
    """Encode clips of equal length, and tokenise the questions about each."""

    def padded(question: str) -> PaddedText:
        text = question_text(params.tokenizer, params.config, question, BOTH)
        padding = (0, SUFFIX - len(text.tokens))
        tokens, offsets = (jnp.array(np.pad(x, padding)) for x in (text.tokens, text.offsets))
        return PaddedText(tokens, offsets, jnp.int32(len(text.tokens)))

    rows = [_stacked([padded(question) for question in of_clip]) for of_clip in questions]
    layout = _stacked([geometry(clip) for clip in clips])
    last = jnp.full(len(clips), len(clips[0].mel_length) - 1, jnp.int32)
    return Asked(EncodedClip(encode(params, clips, wants), layout, last), _stacked(rows))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def encode(
    params: Params, clips: Sequence[Window], wants: frozenset[str] = frozenset()
) -> EncodedWindow:
    """Encode clips of equal length: [B, W, ...]."""
    together: Any = jax.tree.map(lambda *leaves: np.concatenate(leaves), *clips)
    blocks = []
    for start in range(0, len(together.mel_length), ENCODED_AT_ONCE):
        block = jax.tree.map(lambda x, at=start: x[at : at + ENCODED_AT_ONCE], together)
        blocks.append(
            family(params.config).encode_windows(
                params.weights,
                block,
                config=params.config,
                dtype=params.dtype,
                backend=Backend.of(params.weights),
                wants=wants,
            )
        )
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *blocks)
    return jax.tree.map(lambda x: x.reshape(len(clips), -1, *x.shape[1:]), whole)


def opening(params: Params) -> Text:
    """The text before a clip."""
    return segments(params.tokenizer, params.config, [BOTH, "?"])[0]


def text_tokens(params: Params, question: str) -> int:
    """Tokens of text in a prompt about a clip, those that open the clip included."""
    markers = family(params.config).start_markers(params.config, BOTH.audio, BOTH.video)
    about = question_text(params.tokenizer, params.config, question, BOTH)
    return len(opening(params).tokens) + len(markers) + len(about.tokens)


def answers(params: Params, asked: Asked, method: Method, seeds: Sequence[int]) -> Answered:
    """Answer every question of every clip.

    Args:
        seeds: one for each clip, as ``generate`` takes it.

    Raises:
        ValueError: the method kept more than its bound.
    """
    dtypes, backend = (params.dtype, params.cache_dtype), Backend.of(params.weights)
    prefill_config = PrefillConfig(params.config, method, SPEC, BOTH, *dtypes, backend)
    before = opening(params)
    text = len(before.tokens) + len(prefill_config.markers)
    one = jax.tree.map(lambda x: x[0], asked.clips.layout)
    budget = method.plan(*token_counts(one, params.config))
    stages = method.stages(params.config.text.layers)
    # Every size includes the question, whose length differs.
    pruning = Pruning.of(stages, text + SUFFIX, budget.total, 1) if stages else None
    answered, lost = _answer_clips(
        params.weights,
        jax.vmap(jax.random.key)(jnp.array(seeds)),
        pad_text(before.tokens),
        asked,
        budget,
        prefill_config=prefill_config,
        capacity=bucket(
            budget.total + text + SUFFIX + prefill_config.backend.prefill_chunks[-1], CACHE_BUCKETS
        ),
        pruning=pruning,
    )
    if np.any(np.asarray(lost)):
        raise ValueError(f"{method} kept more tokens than its bound")
    return jax.tree.map(np.asarray, answered)


@functools.partial(jax.jit, static_argnames=("prefill_config", "capacity", "pruning"))
def _answer_clips(
    weights: Any,
    keys: Key[Array, " B"],
    prefix: PaddedText,
    asked: Asked,
    budget: Budget,
    *,
    prefill_config: PrefillConfig,
    capacity: int,
    pruning: Pruning | None,
) -> tuple[Answered, Array]:
    """The answers about every clip, and whether a clip kept more tokens than its bound."""
    config = prefill_config.config
    decoder = family(config).bound_decoder(
        weights, config, prefill_config.dtype, prefill_config.backend
    )

    def prefill(key: Array, about: Asked, question: PaddedText) -> Any:
        slots = 0 if pruning else capacity
        cache = (
            None if pruning else KVCache.empty(config.text, capacity, prefill_config.cache_dtype)
        )
        state = StreamState.initial(slots, key)
        clip, settings = about.clips, {"prefill_config": prefill_config, "pruning": pruning}
        return prefill_clip(weights, cache, state, prefix, clip, budget, question, **settings)

    def without_stages(row: tuple[Array, Asked]) -> tuple[Answered, Array]:
        """The clip is prefilled once; the questions do not see each other."""
        key, about = row
        cache, state, *_ = prefill(key, about, pad_text(np.zeros(0, np.int32)))

        def answer(text: PaddedText) -> Array:
            positions = jnp.broadcast_to(state.after + text.offsets, (3, len(text.tokens)))
            hidden, _ = decoder(decoder.embed(text.tokens), positions, cache)
            return jnp.argmax(decoder.logits(hidden[text.count - 1][None])[0])

        tokens = jax.vmap(answer)(about.questions)
        return Answered(tokens, state.kept[None]), state.overflow

    def with_stages(row: tuple[Array, Asked]) -> tuple[Answered, Array]:
        """Clip and question are prefilled together, once for every question."""
        key, about = row

        def answer(text: PaddedText) -> tuple[Array, Array, Array]:
            _, state, logits, trace = prefill(key, about, text)
            layers, depths = config.text.layers, (trace.audio_depth, trace.video_depth)
            stages = prefill_config.method.stages(layers)
            passed = [[jnp.sum(d * layers > s.after + 0.5) for d in depths] for s in stages]
            kept = jnp.concatenate([state.kept[None], jnp.array(passed, jnp.int32)])
            return jnp.argmax(logits), kept, state.overflow

        tokens, kept, lost = jax.lax.map(answer, about.questions)
        return Answered(tokens, kept[0]), jnp.max(lost)

    return jax.lax.map(with_stages if pruning else without_stages, (keys, asked))
