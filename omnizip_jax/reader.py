"""Whole clips: the driver that looks ahead."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from omnizip_jax import prompt as prompts
from omnizip_jax.block import after_media, join, media_block, text_block
from omnizip_jax.compression import Method
from omnizip_jax.context import Context, Keeping, Past, Reading
from omnizip_jax.entry import append, read_prefix, read_text, remember_text
from omnizip_jax.layout import (
    ENCODE_BLOCK,
    PaddedText,
    bucket,
    geometry,
    pad_windows,
    padded_length,
    padded_text,
    token_counts,
)
from omnizip_jax.media import Clip
from omnizip_jax.models.families import Config, family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params, WeightsMark
from omnizip_jax.models.text import KVCache
from omnizip_jax.prompt import Medium, Text
from omnizip_jax.room import make_room, measured
from omnizip_jax.turn import Turn
from omnizip_jax.types import EncodedClip, EncodedWindow, Selection, Window


def read_turn(
    params: Params,
    turn: Turn,
    method: Method,
    room: int,
    seed: int = 0,
    progress: bool = False,
    encoded: Sequence[EncodedWindow] | None = None,
) -> tuple[Context, dict[str, float]]:
    """Every clip with the text before it; the last text is left to a question.

    Args:
        room: slots that stay free.
        seed: for methods that draw.
        progress: show a progress bar of the encoders.
        encoded: each clip's windows, where the encoders have seen them already.

    Returns:
        The context, and the wall seconds of "encoders" and "prefill".
    """
    context = nothing_read(params, method, turn.system, seed)
    seconds = {"encoders": 0.0, "prefill": 0.0}
    for i, (clip, text) in enumerate(zip(turn.clips, turn.texts, strict=False)):
        with timed(seconds, "encoders"):
            if encoded is None:
                ready = encode(params, clip, method, progress)
            else:
                ready = laid_out(clip, encoded[i])
        with timed(seconds, "prefill"):
            context = _read_next(params, context, clip, ready, text)
        del ready
    if not turn.clips:
        prefix = turn.texts[0].tokens
        context = read_prefix(params, context, prefix, bucket(len(prefix) + room))
    return make_room(context, room, room), seconds


def read_encoded(
    params: Params,
    clip: Clip,
    encoded: EncodedWindow,
    method: Method,
    *,
    system: str = prompts.DEFAULT_SYSTEM,
    room: int = 256,
    seed: int = 0,
) -> Context:
    """``read`` for a clip that is encoded already: several methods share one encoding."""
    text, _ = Turn.of(params, [clip, "?"], system).texts
    context = nothing_read(params, method, system, seed)
    context = _read_next(params, context, clip, laid_out(clip, encoded), text)
    return make_room(context, room, room)


def nothing_read(params: Params, method: Method, system: str, seed: int) -> Context:
    """Where a turn begins: nothing is ever forgotten."""
    reading = Reading.of(params, method, params.config.spec, Medium(audio=True, video=True))
    return Context.nothing(params, reading, Keeping(system, WeightsMark(params)), seed)


def encode(params: Params, clip: Clip, method: Method, progress: bool) -> EncodedClip:
    """What a method chooses from, once the device has made it."""
    encoded = encode_clip(params.weights, clip.windows, params.config, progress, method.wants)
    return laid_out(clip, jax.block_until_ready(encoded))


def laid_out(clip: Clip, encoded: EncodedWindow) -> EncodedClip:
    """A clip's windows after the encoders, with where they lie."""
    layout = pad_windows(geometry(clip.windows), len(encoded.video_mask))
    return EncodedClip(encoded, layout, jnp.int32(len(clip.windows.mel_length) - 1))


def encode_clip(
    weights: Any,
    windows: Window,
    config: Config,
    progress: bool = False,
    wants: frozenset[str] = frozenset(),
) -> EncodedWindow:
    """Encode a clip in blocks of a fixed number of windows, one program for any length.

    The result is padded with empty windows up to the clip's length bucket. Blocks are padded one
    by one, when they are dispatched: no pixels are made for the whole clip.

    Args:
        wants: what a method needs beyond embeddings (``Method.wants``).
    """
    total, kernels = padded_length(len(windows.mel_length)), Kernels.of(weights)

    def encode(start: int) -> EncodedWindow:
        block = jax.tree.map(lambda x: x[start : start + ENCODE_BLOCK], windows)
        block = pad_windows(block, ENCODE_BLOCK)
        return family(config).encode_windows(
            weights, block, config=config, kernels=kernels, wants=wants
        )

    starts = tqdm(range(0, total, ENCODE_BLOCK), "encoding", unit="block", disable=not progress)
    blocks = []
    for start in starts:
        blocks.append(encode(start))
        if progress:  # dispatch runs ahead of the device, a bar should not
            jax.block_until_ready(blocks[-1])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)


@functools.partial(jax.jit, static_argnames=("reading", "capacity"), donate_argnames="cache")
def read_clip(
    weights: Any,
    cache: KVCache | None,
    past: Past,
    prefix: PaddedText | None,
    clip: EncodedClip,
    *,
    reading: Reading,
    capacity: int,
) -> tuple[KVCache, Past, Selection]:
    """One program from the encoders' outputs to a context: choose, pack, prefill.

    Args:
        cache: None before the first clip: it is made here, with ``capacity`` slots.
        prefix: the text before the first clip; None behind what was read before.
        clip: the clip's windows, padded with empty ones.
        capacity: static bound on the tokens that the decoder reads here.
    """
    decoder = family(reading.config).bound_decoder(weights, reading.config, reading.kernels)
    selection = choose(reading, past, clip)
    if prefix is not None:
        past = past.opened(prefix.count, capacity)
    block = media_block(decoder, reading, past, clip, selection)
    if prefix is not None:
        block = join(text_block(decoder, prefix, 0), block)
    fresh = cache is None
    if cache is None:
        cache = KVCache.empty(reading.config.text, capacity, block.embeddings.dtype)
    after = after_media(reading, past, clip, selection)
    cache, past = append(decoder, cache, after, block, capacity, fresh)
    return cache, past, selection.trace


def choose(reading: Reading, past: Past, clip: EncodedClip) -> Selection:
    """What the method keeps of a clip."""
    return reading.method.select(clip.windows, jax.random.fold_in(past.key, past.windows))


def read_size(
    audio_counts: Int[np.ndarray, " W"],
    video_counts: Int[np.ndarray, " W"],
    text: int,
    method: Method,
) -> int:
    """Static bound on what the decoder reads of a clip and ``text`` tokens before it."""
    return bucket(method.bound(audio_counts, video_counts) + text)


def _read_next(
    params: Params, context: Context, clip: Clip, encoded: EncodedClip, text: Text
) -> Context:
    """The next clip of a conversation, behind the text before it."""
    context = context.replace(reading=of_clip(context.reading, clip))
    reading, padded = context.reading, padded_text(text.tokens, text.offsets)
    fresh, size = context.capacity == 0, len(padded.tokens)
    audio, video = token_counts(clip.windows, reading.config)
    before = len(reading.markers) + (size if fresh else 0)
    capacity = read_size(audio, video, before, reading.method)
    if not fresh:
        context = make_room(context, size + capacity, size)
        end = context.past.after + int(text.offsets[-1]) + 1
        context, _ = read_text(params, context, padded, context.past.after)
        context = remember_text(context, context.filled, end)
    cache, past, trace = read_clip(
        params.weights,
        None if fresh else context.cache,
        context.past,
        padded if fresh else None,
        encoded,
        reading=reading,
        capacity=capacity,
    )
    return measured(context.replace(cache=cache, past=past, trace=of_windows(trace, clip)))


def of_clip(reading: Reading, clip: Clip) -> Reading:
    """As windows of a clip are read."""
    medium = Medium(clip.has_audio, clip.has_video)
    return dataclasses.replace(reading, spec=clip.spec, medium=medium)


def of_windows(trace: Selection, clip: Clip) -> Selection:
    """The trace of the clip's own windows, without padding, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[: len(clip.windows.mel_length)], trace)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of what is done inside to what ``name`` took so far."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
