"""Clips under a method with stages inside the decoder: the question is read along with the clip.

A stage scores tokens by what the last token of the prompt attends to, so clip and question are one
prefill, and nothing can be asked a second time without reading the clip again.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax.block import Block, after_media, join, media_block, text_block
from omnizip_jax.compression import Method
from omnizip_jax.compression.pack import unpacked
from omnizip_jax.compression.stages import AUDIO, TEXT, VIDEO, Stage, Tokens
from omnizip_jax.context import Context, Past, Reading
from omnizip_jax.layout import PaddedText, bucket, padded_text, token_counts
from omnizip_jax.memory import AUDIO as AUDIO_SLOT
from omnizip_jax.memory import VIDEO as VIDEO_SLOT
from omnizip_jax.models.families import family
from omnizip_jax.models.params import Params
from omnizip_jax.models.text import KVCache
from omnizip_jax.reader import (
    choose,
    encode,
    laid_out,
    nothing_read,
    of_clip,
    of_windows,
    timed,
)
from omnizip_jax.turn import Turn
from omnizip_jax.types import EncodedClip, EncodedWindow, Selection


def read_with_question(
    params: Params,
    turn: Turn,
    method: Method,
    room: int,
    seed: int = 0,
    progress: bool = False,
    encoded: EncodedWindow | None = None,
) -> tuple[Context, Float[Array, " V"], dict[str, float]]:
    """Clip and question in one prefill.

    Args:
        room: slots for the answer.
        seed, progress: as for ``read_turn``.
        encoded: the clip's windows, where the encoders have seen them already.

    Returns:
        The context, the logits of the answer's first token, the seconds as from ``read_turn``.

    Raises:
        ValueError: several clips; a method or a stage that kept more than its bound.
    """
    clip, *others = turn.clips
    if others:
        raise ValueError(
            f"{type(method).__name__} prunes inside the decoder, which takes one clip at a time; "
            f"got {len(turn.clips)}"
        )
    seconds: dict[str, float] = {}
    with timed(seconds, "encoders"):
        if encoded is None:
            ready = encode(params, clip, method, progress)
        else:
            ready = laid_out(clip, encoded)
    context = nothing_read(params, method, turn.system, seed)
    reading = of_clip(context.reading, clip)
    media = method.bound(*token_counts(clip.windows, params.config))
    text = sum(len(part.tokens) for part in turn.texts) + len(reading.markers)
    with timed(seconds, "prefill"):
        cache, logits, past, trace, lost = read_staged(
            params.weights,
            context.past,
            ready,
            *(padded_text(part.tokens, part.offsets) for part in turn.texts),
            reading=reading,
            capacity=bucket(media + text),
            sizes=stage_sizes(method.stages(params.config.text.layers), text, media),
            room=bucket(room),
        )
        if np.any(np.asarray(lost)):
            raise ValueError(
                f"{method} kept {np.asarray(lost).tolist()} tokens more than its bounds, and they "
                "were lost: the bound of its selection or of a stage is too low"
            )
    trace = of_windows(trace, clip)
    return context.replace(cache=cache, past=past, trace=trace, reading=reading), logits, seconds


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
    clip: EncodedClip,
    prefix: PaddedText,
    question: PaddedText,
    *,
    reading: Reading,
    capacity: int,
    sizes: tuple[int, ...],
    room: int,
) -> tuple[tuple[KVCache, ...], Float[Array, " V"], Past, Selection, Int[Array, " stages"]]:
    """One program from the encoders' outputs to the logits of the first token.

    Args:
        clip: the clip's windows, padded with empty ones.
        prefix, question: the texts before and after it.
        capacity: static bound on the tokens that enter the decoder.
        sizes: static bounds on those that go on after each stage.
        room: slots for the answer.

    Returns:
        The cache in segments, the logits, the past, the trace with the depth that each token
        reaches, and the tokens beyond each bound.
    """
    config = reading.config
    decoder = family(config).bound_decoder(weights, config, reading.kernels)
    selection = choose(reading, past, clip)
    past = past.opened(prefix.count, 0)
    opening = text_block(decoder, prefix, 0)
    media = media_block(decoder, reading, past, clip, selection)
    after = after_media(reading, past, clip, selection)
    asked = text_block(decoder, question, after.after)
    whole = join(join(opening, media), asked)
    packed, lost = whole.packed(capacity)
    tokens = _tokens(packed, len(clip.layout.grid_size))
    stages = reading.method.stages(config.text.layers)
    x, tokens, cache, depth = decoder.prefill(packed.embeddings, tokens, stages, sizes, room)
    logits = decoder.logits(x[tokens.count - 1][None])[0]
    wanted = jnp.array([jnp.sum(depth > stage.after) for stage in stages], jnp.int32)
    beyond = jnp.maximum(wanted - jnp.array(sizes, jnp.int32), 0)
    depth = unpacked(depth / config.text.layers, whole.keep)
    windows = slice(len(prefix.tokens) + len(reading.markers), -len(question.tokens))
    trace = _with_depth(selection.trace, depth[windows])
    return cache, logits, after, trace, jnp.concatenate([lost[None], beyond])


def _with_depth(trace: Selection, depth: Float[Array, " slots"]) -> Selection:
    """The trace with the depth that each slot of the clip's windows reaches."""
    windows, grids, cells = trace.video_keep.shape
    video, audio = jnp.split(depth.reshape(windows, -1), [grids * cells], axis=1)
    return trace.replace(audio_depth=audio, video_depth=video.reshape(trace.video_keep.shape))


def _tokens(block: Block, windows: int) -> Tokens:
    """What a packed block holds, in the words of stages."""
    kind = jnp.where(block.slots.kind == VIDEO_SLOT, VIDEO, TEXT)
    kind = jnp.where(block.slots.kind == AUDIO_SLOT, AUDIO, kind)
    return Tokens(block.positions, kind, block.slots.unit - 1, jnp.sum(block.keep), windows)
