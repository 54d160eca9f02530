"""Clips under a method with stages inside the decoder: the question is read along with the clip.

A stage scores tokens by what the last token of the prompt attends to, so clip and question are one
prefill, and nothing can be asked a second time without reading the clip again.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.compression.pack import front
from omnizip_jax.compression.stages import AUDIO, TEXT, VIDEO, Stage, Tokens
from omnizip_jax.context import (
    Block,
    Past,
    Reading,
    after_media,
    join,
    media_block,
    text_block,
)
from omnizip_jax.layout import bucket
from omnizip_jax.memory import AUDIO as AUDIO_SLOT
from omnizip_jax.memory import VIDEO as VIDEO_SLOT
from omnizip_jax.models.families import family
from omnizip_jax.models.text import KVCache
from omnizip_jax.types import EncodedWindow, Selection, Window


def stage_sizes(stages: tuple[Stage, ...], text: int, media: int) -> tuple[int, ...]:
    """Static slots of what goes on after each stage, of so many tokens of text and media."""
    sizes = []
    for stage in stages:
        size = stage.bound(text, media)
        media = size - text
        sizes.append(bucket(size))
    return tuple(sizes)


@functools.partial(jax.jit, static_argnames=("reading", "capacity", "sizes", "room"))
def read_staged(
    weights: Any,
    past: Past,
    prefix: Int[Array, " P"],
    length: Int[Array, ""],
    encoded: EncodedWindow,
    layout: Window,
    last: Int[Array, ""],
    question: Int[Array, " Q"],
    offsets: Int[Array, " Q"],
    count: Int[Array, ""],
    *,
    reading: Reading,
    capacity: int,
    sizes: tuple[int, ...],
    room: int,
) -> tuple[tuple[KVCache, ...], Float[Array, " V"], Past, Selection, Int[Array, " stages"]]:
    """One program from the encoders' outputs to the logits of the first token.

    Args:
        prefix, length: the text before the clip, padded, and how many of its tokens are real.
        encoded, layout, last: as for ``read_clip``.
        question, offsets, count: the text after the clip.
        capacity: static bound on the tokens that enter the decoder.
        sizes: static bounds on those that go on after each stage.
        room: slots for the answer.

    Returns:
        The cache in segments, the logits, the past, the trace with the depth that each token
        reaches, and the tokens beyond each bound.
    """
    config, method = reading.config, reading.method
    decoder = family(config).bound_decoder(weights, config, reading.kernels)
    selection = method.select(encoded, jax.random.fold_in(past.key, past.windows))
    past = past.replace(origin=length, time=length, base=length, after=length)
    opening = text_block(decoder, prefix, jnp.arange(len(prefix)), length)
    clip = media_block(decoder, reading, past, layout, encoded, selection)
    after = after_media(reading, past, layout, encoded, selection, last)
    asked = text_block(decoder, question, after.after + offsets, count)
    block = join(join(opening, clip), asked)
    index, used = front(block.keep, capacity)
    x = jnp.where(used[:, None], block.embeddings[index], 0)
    tokens = _tokens(block, len(layout.grid_size)).take(index, jnp.sum(used))
    stages = method.stages(config.text.layers)
    x, tokens, cache, depth = decoder.prefill(x, tokens, stages, sizes, room)
    logits = decoder.logits(x[tokens.count - 1][None])[0]
    wanted = [block.keep, *(depth > stage.after for stage in stages)]
    lost = jnp.array([jnp.sum(mask) for mask in wanted]) - jnp.array([capacity, *sizes])
    reached = jnp.zeros(len(block.keep)).at[index].max(depth / config.text.layers)
    begin = len(prefix) + len(reading.markers)
    trace = _with_depth(selection.trace, reached[begin : len(reached) - len(question)])
    return cache, logits, after, trace, jnp.maximum(lost, 0)


def _with_depth(trace: Selection, depth: Float[Array, " slots"]) -> Selection:
    """The trace with the depth that each slot of the clip's windows reaches."""
    windows, grids, cells = trace.video_keep.shape
    video, audio = jnp.split(depth.reshape(windows, -1), [grids * cells], axis=1)
    return trace.replace(audio_depth=audio, video_depth=video.reshape(trace.video_keep.shape))


def _tokens(block: Block, windows: int) -> Tokens:
    kind = jnp.where(block.slots.kind == VIDEO_SLOT, VIDEO, TEXT)
    kind = jnp.where(block.slots.kind == AUDIO_SLOT, AUDIO, kind)
    return Tokens(block.positions, kind, block.slots.unit - 1, jnp.int32(len(kind)), windows)
