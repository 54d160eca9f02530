"""Prefill: the only place where tokens enter a KV cache."""

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
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from omnizip_jax.compression import Method
from omnizip_jax.compression.pack import unpacked
from omnizip_jax.compression.stages import Stage, Tokens
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.inference.chat_template import Modalities, Text
from omnizip_jax.inference.context import (
    Context,
    PrefillConfig,
    RetentionPolicy,
    SlotMetadata,
    StreamState,
    commit,
)
from omnizip_jax.inference.inputs import UserTurn
from omnizip_jax.inference.kv_cache import ensure_capacity, refresh_usage
from omnizip_jax.inference.sequence import (
    ENCODE_BLOCK,
    PaddedText,
    TokenSequence,
    after_media,
    bucket,
    geometry,
    join,
    media_block,
    pad_windows,
    padded_length,
    padded_text,
    text_block,
    token_counts,
)
from omnizip_jax.media import Clip
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.params import Params, WeightsIdentity
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import EncodedClip, EncodedWindow, Selection, TokenKind, Window


def append(
    decoder: Any,
    cache: KVCache,
    state: StreamState,
    block: TokenSequence,
    capacity: int,
    fresh: bool = False,
) -> tuple[KVCache, StreamState]:
    """Pack a block to the front of ``capacity`` slots, prefill it, and describe its slots.

    Args:
        cache: has at least ``capacity`` free slots.
        state: as the block leaves it, but for the slots and for what was lost.
        fresh: the cache is known to be empty.
    """
    packed, lost = block.packed(capacity)
    slots = state.slots.write(packed.slots, cache.length)
    count = jnp.sum(packed.keep)
    _, cache = decoder(packed.embeddings, packed.positions, cache, count, fresh=fresh)
    return cache, state.replace(slots=slots, overflow=state.overflow + lost)


@functools.partial(jax.jit, static_argnames=("config", "backend"), donate_argnames="cache")
def append_text(
    weights: Any,
    cache: KVCache,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    count: Int[Array, ""],
    *,
    config: Config,
    backend: Backend,
) -> tuple[KVCache, Float[Array, " V"]]:
    """Append ``count`` text tokens to the cache; the logits after the last."""
    decoder = family(config).bound_decoder(weights, config, backend)
    embeddings = decoder.embed(tokens)
    positions = jnp.broadcast_to(positions, (3, tokens.shape[0]))
    hidden, cache = decoder(embeddings, positions, cache, count)
    return cache, decoder.logits(hidden[count - 1][None])[0]


def read_text(
    params: Params, context: Context, text: PaddedText, start: Int[Array, ""] | int
) -> tuple[Context, Float[Array, " V"]]:
    """A context whose cache holds one text more, from a position on; the logits after it.

    The cache that is given in is used up; ``remember_text`` makes the text part of the past.
    """
    cache, logits = append_text(
        params.weights,
        context.cache,
        text.tokens,
        start + text.offsets,
        text.count,
        config=context.prefill_config.config,
        backend=context.prefill_config.backend,
    )
    return context.replace(cache=cache), logits


def remember_text(context: Context, begin: int, end: Int[Array, ""]) -> Context:
    """Make the slots from ``begin`` on one unit of text that ends before position ``end``."""
    state, length = context.state, int(context.cache.length)
    place = jnp.arange(context.capacity)
    new = (place >= begin) & (place < length)

    def mark(old: Array, value: Array | int) -> Array:
        return jnp.where(new, value, old).astype(old.dtype)

    slots = SlotMetadata(
        kind=mark(state.slots.kind, TokenKind.TEXT),
        unit=mark(state.slots.unit, state.unit),
        time=mark(state.slots.time, state.after),
        base=mark(state.slots.base, state.after),
        importance=mark(state.slots.importance, 1),
    )
    state = state.replace(
        slots=slots,
        time=end,
        after=end,
        base=end,
        unit=state.unit + 1,
        in_video=jnp.zeros_like(state.in_video),
    )
    return context.replace(state=state, used_slots=length, used_positions=int(end))


def read_prefix(
    params: Params, context: Context, prefix: Int[np.ndarray, " P"], capacity: int
) -> Context:
    """Prefill the prompt up to where the first clip, or a question without one, begins.

    Args:
        context: nothing yet.
        capacity: slots of the cache.
    """
    text = padded_text(prefix)
    cache = KVCache.empty(context.prefill_config.config.text, capacity, context.cache.keys.dtype)
    context, _ = read_text(params, context.replace(cache=cache), text, 0)
    state = commit(context.state.after_prefix(text.count, capacity), context.cache.length)
    return context.replace(state=state, used_slots=len(prefix), used_positions=len(prefix))


def read_turn(
    params: Params,
    turn: UserTurn,
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
    return ensure_capacity(context, room, room), seconds


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
    text, _ = UserTurn.of(params, [clip, "?"], system).texts
    context = nothing_read(params, method, system, seed)
    context = _read_next(params, context, clip, laid_out(clip, encoded), text)
    return ensure_capacity(context, room, room)


def nothing_read(params: Params, method: Method, system: str, seed: int) -> Context:
    """Where a turn begins: nothing is ever forgotten."""
    prefill_config = PrefillConfig.of(
        params, method, params.config.spec, Modalities(audio=True, video=True)
    )
    return Context.initial(
        params, prefill_config, RetentionPolicy(system, WeightsIdentity(params)), seed
    )


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
    total, backend = padded_length(len(windows.mel_length)), Backend.of(weights)

    def encode(start: int) -> EncodedWindow:
        block = jax.tree.map(lambda x: x[start : start + ENCODE_BLOCK], windows)
        block = pad_windows(block, ENCODE_BLOCK)
        return family(config).encode_windows(
            weights, block, config=config, backend=backend, wants=wants
        )

    starts = tqdm(range(0, total, ENCODE_BLOCK), "encoding", unit="block", disable=not progress)
    blocks = []
    for start in starts:
        blocks.append(encode(start))
        if progress:  # dispatch runs ahead of the device, a bar should not
            jax.block_until_ready(blocks[-1])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)


@functools.partial(jax.jit, static_argnames=("prefill_config", "capacity"), donate_argnames="cache")
def read_clip(
    weights: Any,
    cache: KVCache | None,
    state: StreamState,
    prefix: PaddedText | None,
    clip: EncodedClip,
    *,
    prefill_config: PrefillConfig,
    capacity: int,
) -> tuple[KVCache, StreamState, Selection]:
    """One program from the encoders' outputs to a context: choose, pack, prefill.

    Args:
        cache: None before the first clip: it is made here, with ``capacity`` slots.
        prefix: the text before the first clip; None behind what was read before.
        clip: the clip's windows, padded with empty ones.
        capacity: static bound on the tokens that the decoder reads here.
    """
    decoder = family(prefill_config.config).bound_decoder(
        weights, prefill_config.config, prefill_config.backend
    )
    selection = choose(prefill_config, state, clip)
    if prefix is not None:
        state = state.after_prefix(prefix.count, capacity)
    block = media_block(decoder, prefill_config, state, clip, selection)
    if prefix is not None:
        block = join(text_block(decoder, prefix, 0), block)
    fresh = cache is None
    if cache is None:
        cache = KVCache.empty(prefill_config.config.text, capacity, block.embeddings.dtype)
    after = after_media(prefill_config, state, clip, selection)
    cache, state = append(decoder, cache, after, block, capacity, fresh)
    return cache, state, selection.trace


def choose(prefill_config: PrefillConfig, state: StreamState, clip: EncodedClip) -> Selection:
    """What the method keeps of a clip."""
    return prefill_config.method.select(clip.windows, jax.random.fold_in(state.key, state.windows))


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
    context = context.replace(prefill_config=of_clip(context.prefill_config, clip))
    prefill_config, padded = context.prefill_config, padded_text(text.tokens, text.offsets)
    fresh, size = context.capacity == 0, len(padded.tokens)
    audio, video = token_counts(clip.windows, prefill_config.config)
    before = len(prefill_config.markers) + (size if fresh else 0)
    capacity = read_size(audio, video, before, prefill_config.method)
    if not fresh:
        context = ensure_capacity(context, size + capacity, size)
        end = context.state.after + int(text.offsets[-1]) + 1
        context, _ = read_text(params, context, padded, context.state.after)
        context = remember_text(context, context.used_slots, end)
    cache, state, trace = read_clip(
        params.weights,
        None if fresh else context.cache,
        context.state,
        padded if fresh else None,
        encoded,
        prefill_config=prefill_config,
        capacity=capacity,
    )
    return refresh_usage(context.replace(cache=cache, state=state, trace=of_windows(trace, clip)))


def of_clip(prefill_config: PrefillConfig, clip: Clip) -> PrefillConfig:
    """As windows of a clip are read."""
    modalities = Modalities(clip.has_audio, clip.has_video)
    return dataclasses.replace(prefill_config, spec=clip.spec, modalities=modalities)


def of_windows(trace: Selection, clip: Clip) -> Selection:
    """The trace of the clip's own windows, without padding, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[: len(clip.windows.mel_length)], trace)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of what is done inside to what ``name`` took so far."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def read_with_question(
    params: Params,
    turn: UserTurn,
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
    prefill_config = of_clip(context.prefill_config, clip)
    media = method.bound(*token_counts(clip.windows, params.config))
    text = sum(len(part.tokens) for part in turn.texts) + len(prefill_config.markers)
    with timed(seconds, "prefill"):
        cache, logits, state, trace, lost = read_staged(
            params.weights,
            context.state,
            ready,
            *(padded_text(part.tokens, part.offsets) for part in turn.texts),
            prefill_config=prefill_config,
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
    return (
        context.replace(cache=cache, state=state, trace=trace, prefill_config=prefill_config),
        logits,
        seconds,
    )


def stage_sizes(stages: tuple[Stage, ...], text: int, media: int) -> tuple[int, ...]:
    """Static slots of what goes on after each stage, of so many tokens of text and media."""
    sizes = []
    for stage in stages:
        size = stage.bound(text, media)
        media = size - text
        sizes.append(bucket(size))
    return tuple(sizes)


@functools.partial(jax.jit, static_argnames=("prefill_config", "capacity", "sizes", "room"))
def read_staged(
    weights: Any,
    state: StreamState,
    clip: EncodedClip,
    prefix: PaddedText,
    question: PaddedText,
    *,
    prefill_config: PrefillConfig,
    capacity: int,
    sizes: tuple[int, ...],
    room: int,
) -> tuple[tuple[KVCache, ...], Float[Array, " V"], StreamState, Selection, Int[Array, " stages"]]:
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
    config = prefill_config.config
    decoder = family(config).bound_decoder(weights, config, prefill_config.backend)
    selection = choose(prefill_config, state, clip)
    state = state.after_prefix(prefix.count, 0)
    opening = text_block(decoder, prefix, 0)
    media = media_block(decoder, prefill_config, state, clip, selection)
    after = after_media(prefill_config, state, clip, selection)
    asked = text_block(decoder, question, after.after)
    whole = join(join(opening, media), asked)
    packed, lost = whole.packed(capacity)
    tokens = _tokens(packed, len(clip.layout.grid_size))
    stages = prefill_config.method.stages(config.text.layers)
    x, tokens, cache, depth = decoder.prefill(packed.embeddings, tokens, stages, sizes, room)
    logits = decoder.logits(x[tokens.count - 1][None])[0]
    wanted = jnp.array([jnp.sum(depth > stage.after) for stage in stages], jnp.int32)
    beyond = jnp.maximum(wanted - jnp.array(sizes, jnp.int32), 0)
    depth = unpacked(depth / config.text.layers, whole.keep)
    windows = slice(len(prefix.tokens) + len(prefill_config.markers), -len(question.tokens))
    trace = _with_depth(selection.trace, depth[windows])
    return cache, logits, after, trace, jnp.concatenate([lost[None], beyond])


def _with_depth(trace: Selection, depth: Float[Array, " slots"]) -> Selection:
    """The trace with the depth that each slot of the clip's windows reaches."""
    windows, grids, cells = trace.video_keep.shape
    video, audio = jnp.split(depth.reshape(windows, -1), [grids * cells], axis=1)
    return trace.replace(audio_depth=audio, video_depth=video.reshape(trace.video_keep.shape))


def _tokens(block: TokenSequence, windows: int) -> Tokens:
    """What a packed block holds, in the words of stages."""
    return Tokens(
        block.positions, block.slots.kind, block.slots.unit - 1, jnp.sum(block.keep), windows
    )
