"""Prefill: select, lay out, advance the state, pack, run the decoder, record slot metadata.

``prefill_windows`` is the only pipeline. Whole clips, clips that are pruned inside the decoder
(``prefill_clip``) and streamed windows (``streaming.feed``) call it inside their own ``jit``.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from omnizip_jax.compression import Budget, Method
from omnizip_jax.compression.decoder_stages import Stage, Tokens, unpacked
from omnizip_jax.inference.chat_template import Modalities, Text
from omnizip_jax.inference.context import (
    Context,
    PrefillConfig,
    RetentionPolicy,
    SlotMetadata,
    StreamState,
)
from omnizip_jax.inference.inputs import UserTurn, modalities_of
from omnizip_jax.inference.kv_cache_capacity import refresh_usage
from omnizip_jax.inference.sequence import (
    CACHE_BUCKETS,
    TEXT_BUCKETS,
    WINDOW_BUCKETS,
    PaddedText,
    TokenSequence,
    bucket,
    concatenate,
    fine_bucket,
    geometry,
    pad_text,
    pad_windows,
    slot_order,
    state_after_text,
    state_after_windows,
    text_sequence,
    token_counts,
    window_sequence,
)
from omnizip_jax.media import Clip
from omnizip_jax.models.backend import Backend, jax_defaults
from omnizip_jax.models.cpu_kernels import hold_in_loop
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.loaded_model import Params, weights_fingerprint
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import EncodedClip, EncodedWindow, Selection, TokenKind, Window

ENCODE_BLOCK = 8  # windows per encoder dispatch


class Pruning(NamedTuple):
    """Static sizes of a prefill that is pruned inside the decoder.

    ``capacity`` is in slots of the tokens that enter the decoder, ``sizes`` of those after each
    stage, and ``reserve`` of the free ones behind them.
    """

    stages: tuple[Stage, ...]
    capacity: int
    sizes: tuple[int, ...]
    reserve: int

    @classmethod
    def of(cls, stages: tuple[Stage, ...], text: int, media: int, reserve: int) -> Pruning:
        """Sizes for given numbers of text tokens and of media tokens, and a reserve."""
        capacity, sizes = fine_bucket(text + media), []
        for stage in stages:
            size = stage.bound(text, media)
            media = size - text
            sizes.append(fine_bucket(size))
        return cls(stages, capacity, tuple(sizes), fine_bucket(reserve))


class Prefilled(NamedTuple):
    """Result of ``prefill_windows``; ``cache`` has several segments after a pruned prefill."""

    cache: Any
    state: StreamState
    logits: Float[Array, " V"]
    trace: Selection


def extend_cache(
    decoder: Any,
    cache: KVCache,
    slots: SlotMetadata,
    sequence: TokenSequence,
    limit: Int[Array, ""] | int,
    chunks: tuple[int, ...],
) -> tuple[KVCache, SlotMetadata, Float[Array, " D"], Int[Array, ""]]:
    """Pack the kept tokens of a sequence, run the decoder over them, append them to the cache.

    The decoder reads as many blocks of the first chunk size as are full, then of the next; the last
    block is padded. The number of blocks is data, so one program serves sequences of all lengths.

    Args:
        slots: metadata of the cache's slots.
        limit: the most tokens that are appended. The cache has as many free slots, rounded up to
            the last chunk size.
        chunks: tokens per block, in descending order.

    Returns:
        The cache, the metadata, the hidden state of the last token, and the number of kept tokens
        beyond ``limit``, which are dropped.
    """
    size = sequence.keep.shape[0]
    chunks = tuple(chunk for chunk in chunks if chunk <= size) or (size,)
    wanted = jnp.sum(sequence.keep)
    count = jnp.minimum(wanted, limit)
    (index,) = jnp.nonzero(sequence.keep, size=size + -size % chunks[-1], fill_value=0)

    def append(number: Array, carry: tuple[KVCache, SlotMetadata, Array], first: Any, chunk: int):
        cache, slots, _ = carry
        start = first + number * chunk
        used, held = start + jnp.arange(chunk) < count, sequence
        if decoder.backend.holds_weights:  # or the whole clip would be converted before the loop
            held, start = hold_in_loop(sequence, start)
        block = held.gather(jax.lax.dynamic_slice(index, (start,), (chunk,)), used)
        tokens = jnp.sum(used)
        slots = slots.write(block.slots, cache.length)
        hidden, cache = decoder(
            block.embeddings, block.positions, cache, tokens, deepstack=block.deepstack_rows
        )
        return cache, slots, hidden[tokens - 1]

    last = jnp.zeros_like(sequence.sources[0][0])
    carry: Any = (cache, slots, last)
    first = 0
    if isinstance(limit, int) and limit <= chunks[-1]:  # a loop would copy the weights on a GPU
        cache, slots, last = append(jnp.int32(0), carry, first, chunks[-1])
        return cache, slots, last, wanted - count
    for chunk in chunks:
        blocks = (count - first) // chunk if chunk > chunks[-1] else -(-(count - first) // chunk)
        step = functools.partial(append, first=first, chunk=chunk)
        carry, first = jax.lax.fori_loop(0, blocks, step, carry), first + blocks * chunk
    return *carry, wanted - count


def prefill_windows(
    decoder: Any,
    prefill_config: PrefillConfig,
    cache: KVCache | None,
    state: StreamState,
    clip: EncodedClip,
    selection: Selection,
    limit: Int[Array, ""] | int,
    *,
    before: PaddedText | None = None,
    question: PaddedText | None = None,
    importance: tuple[Float[Array, "W A"], Float[Array, "W G P"]] | None = None,
    pruning: Pruning | None = None,
) -> Prefilled:
    """Prefill the selected tokens of windows, with the texts around them.

    Args:
        cache: to append to; None for a pruned prefill, which makes its own.
        limit: the most media tokens, start tokens included, that are appended. As a static
            integer, without texts, it is the size of a single decoder block.
        before, question: texts before and after the windows. The question enters the cache, but
            not the state: ``finish`` records it together with the answer.
        importance: of the audio and the video tokens, for eviction.

    Returns:
        The cache, the state, the logits of the next token, and the selection without embeddings.
    """
    sequences, text = [], 0
    if before is not None:
        sequences.append(text_sequence(decoder, before, state))
        state = state_after_text(state, before)
        text += before.count
    windows = window_sequence(decoder, prefill_config, state, clip, selection, importance)
    start = sum(each.keep.size for each in sequences)
    sequences.append(windows)
    state = state_after_windows(prefill_config, state, clip, selection)
    if question is not None:
        sequences.append(text_sequence(decoder, question, state))
        text += question.count
    sequence = concatenate(*sequences) if len(sequences) > 1 else windows
    trace = selection.trace
    if pruning is None:
        assert cache is not None
        chunks = (limit,) if isinstance(limit, int) else prefill_config.backend.prefill_chunks
        cache, slots, last, lost = extend_cache(
            decoder, cache, state.slots, sequence, limit + text, chunks
        )
        state = state.replace(slots=slots)
    else:
        segments, last, lost, depth = _prefill_pruned(
            decoder, sequence, clip, pruning, prefill_config.cache_dtype
        )
        # The depths of the windows' own slots, without start tokens.
        begin = start + len(prefill_config.markers)
        share = depth[begin : start + windows.keep.size] / prefill_config.config.text.layers
        count, grids, cells = trace.video_keep.shape
        audio_slots = trace.audio_keep.shape[1]
        order = slot_order(clip.layout, cells, audio_slots, prefill_config.config)
        if order is not None:
            share = jnp.zeros_like(share).at[order].set(share)
        video, audio = jnp.split(share.reshape(count, -1), [grids * cells], axis=1)
        trace = trace.replace(audio_depth=audio, video_depth=video.reshape(count, grids, cells))
    logits = decoder.logits(last[None])[0]
    state = state.replace(overflow=state.overflow + lost)
    return Prefilled(cache if pruning is None else segments, state, logits, trace)


def _prefill_pruned(
    decoder: Any,
    sequence: TokenSequence,
    clip: EncodedClip,
    pruning: Pruning,
    cache_dtype: np.dtype,
) -> tuple[tuple[KVCache, ...], Float[Array, " D"], Int[Array, ""], Int[Array, " N"]]:
    """The cache in segments, the last hidden state, the tokens beyond a bound, every depth."""
    packed, lost = sequence.packed(pruning.capacity)
    kind, window = packed.slots.kind, packed.slots.unit - 1
    tokens = Tokens(
        packed.positions, kind, window, jnp.sum(packed.keep), len(clip.layout.grid_size)
    )
    x, tokens, cache, depth = decoder.prefill(
        packed.embeddings,
        tokens,
        pruning.stages,
        pruning.sizes,
        pruning.reserve,
        cache_dtype,
        packed.deepstack_rows,
    )
    for stage, size in zip(pruning.stages, pruning.sizes, strict=True):
        lost += jnp.maximum(jnp.sum(depth > stage.after) - size, 0)
    return cache, x[tokens.count - 1], lost, unpacked(depth, sequence.keep)


@functools.partial(jax.jit, static_argnames=("prefill_config", "pruning"), donate_argnames="cache")
def prefill_clip(
    weights: Any,
    cache: KVCache | None,
    state: StreamState,
    before: PaddedText,
    clip: EncodedClip,
    budget: Budget,
    question: PaddedText,
    *,
    prefill_config: PrefillConfig,
    pruning: Pruning | None = None,
) -> Prefilled:
    """One program from the encoders' outputs to the logits: select, pack, prefill.

    Args:
        clip: the clip's windows, padded with empty ones.
        before, question: the texts around the clip; either may be empty.
        budget: from the method's ``plan``.
    """
    config = prefill_config.config
    decoder = family(config).bound_decoder(
        weights, config, prefill_config.dtype, prefill_config.backend
    )
    key = jax.random.fold_in(state.key, state.windows)
    selection = prefill_config.method.select(clip.windows, budget, key)
    limit = jnp.int32(budget.total) + len(prefill_config.markers)
    return prefill_windows(
        decoder, prefill_config, cache, state, clip, selection, limit,
        before=before, question=question, pruning=pruning,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config", "dtype", "backend"), donate_argnames="cache")
def append_text(
    weights: Any,
    cache: KVCache,
    text: PaddedText,
    start: Int[Array, ""],
    *,
    config: Config,
    dtype: np.dtype,
    backend: Backend,
) -> tuple[KVCache, Float[Array, " V"]]:
    """Append a text to the cache, from position ``start`` on; returns the logits after it."""
    decoder = family(config).bound_decoder(weights, config, dtype, backend)
    positions = jnp.broadcast_to(start + text.offsets, (3, len(text.tokens)))
    hidden, cache = decoder(decoder.embed(text.tokens), positions, cache, text.count)
    return cache, decoder.logits(hidden[text.count - 1][None])[0]


@jax_defaults()
def prefill_text(
    params: Params, context: Context, text: PaddedText, start: Int[Array, ""] | int
) -> tuple[Context, Float[Array, " V"]]:
    """Append a text at a position; returns the context and the logits after the text.

    The cache that is passed in is donated; ``record_text`` adds the text to the state.
    """
    cache, logits = append_text(
        params.weights,
        context.cache,
        text,
        jnp.int32(start),
        config=context.prefill_config.config,
        dtype=context.prefill_config.dtype,
        backend=context.prefill_config.backend,
    )
    return context.replace(cache=cache), logits


@jax_defaults()
def record_text(context: Context, begin: int, end: Int[Array, ""]) -> Context:
    """Make the slots from ``begin`` on one unit of text that ends before position ``end``."""
    length = context.cache.length
    state = _record_text(context.state, jnp.int32(begin), length, jnp.int32(end))
    return context.replace(state=state, used_slots=int(length), used_positions=int(end))


@jax.jit
def _record_text(
    state: StreamState, begin: Int[Array, ""], length: Int[Array, ""], end: Int[Array, ""]
) -> StreamState:
    place = jnp.arange(state.slots.kind.shape[0])
    new = (place >= begin) & (place < length)
    # The first text is the prefix of the prompt, which is never evicted.
    first = state.origin == 0
    kind = jnp.where(first, TokenKind.PREFIX, TokenKind.TEXT)
    text = SlotMetadata(kind, state.unit, state.after, state.after, jnp.float32(1))
    return state.replace(
        slots=jax.tree.map(
            lambda x, old: jnp.where(new, x, old).astype(old.dtype), text, state.slots
        ),
        origin=jnp.where(first, end, state.origin),
        time=end,
        after=end,
        base=end,
        unit=state.unit + ~first,
        in_video=jnp.zeros_like(state.in_video),
    )


def prefill_prefix(params: Params, context: Context, prefix: Int[np.ndarray, " P"]) -> Context:
    """Prefill the prompt up to the first clip, or up to a question without one."""
    text = pad_text(prefix, limit=context.capacity)
    context, _ = prefill_text(params, context, text, 0)
    return record_text(context, 0, text.count)


@jax_defaults()
def prefill_turn(
    params: Params,
    turn: UserTurn,
    method: Method,
    reserve: int,
    *,
    question: bool = False,
    seed: int = 0,
    progress: bool = False,
    encoded: Sequence[EncodedWindow] | None = None,
) -> tuple[Context, Float[Array, " V"] | None, dict[str, float]]:
    """Prefill the clips of a turn, each with the text before it.

    The cache is allocated once: for the turn, its question, and ``reserve`` more slots.

    Args:
        question: prefill the question together with the last clip.
        encoded: each clip's windows, if they are encoded already.

    Returns:
        The context; the logits after the question, None without it; and the wall seconds of
        "encoders" and "prefill".

    Raises:
        ValueError: several clips, or no question, for a method that prunes inside the decoder; a
            method that kept more than its bound.
    """
    stages = method.stages(params.config.text.layers) if turn.clips else ()
    if stages and (len(turn.clips) > 1 or not question):
        raise ValueError(
            f"{type(method).__name__} prunes inside the decoder, which takes one clip at a time, "
            f"together with its question; got {len(turn.clips)} clips"
            + ("" if question else " without a question")
        )
    base, configs, budgets = _plan_turn(params, turn, method)
    # Padded texts count for stages, so that questions of one bucket share a program.
    text = sum(bucket(len(each.tokens), TEXT_BUCKETS) for each in turn.texts)
    retention = RetentionPolicy(turn.system, weights_fingerprint(params))
    capacity = 0 if stages else _cache_slots(turn, base.backend, configs, budgets, reserve)
    context = Context.initial(params, base, retention, seed, capacity)
    seconds, logits = {"encoders": 0.0, "prefill": 0.0}, None
    if not turn.clips:
        with timed(seconds, "prefill"):
            context = prefill_prefix(params, context, turn.texts[0].tokens)
    for i, (clip, config) in enumerate(zip(turn.clips, configs, strict=True)):
        with timed(seconds, "encoders"):
            if encoded is None:
                windows = encode_clip(params, clip.windows, progress, method.wants)
                jax.block_until_ready(windows)
            else:
                windows = encoded[i]
        before, after, pruning = turn.texts[i], turn.texts[i + 1], None
        if stages:  # start tokens count as text: no stage prunes them
            markers = len(config.markers)
            pruning = Pruning.of(stages, text + markers, budgets[i].total, reserve)
        asks = question and i == len(turn.clips) - 1
        asked = after if asks else Text(after.tokens[:0], after.offsets[:0])
        with timed(seconds, "prefill"):
            cache, state, logits, trace = prefill_clip(
                params.weights,
                None if stages else context.cache,
                context.state,
                pad_text(before.tokens, before.offsets),
                encoded_clip(clip, windows),
                budgets[i],
                pad_text(asked.tokens, asked.offsets),
                prefill_config=config,
                pruning=pruning,
            )
            del windows
            count = len(clip.windows.mel_length)
            trace = jax.tree.map(lambda x, count=count: np.asarray(x)[:count], trace)
            context = context.replace(cache=cache, state=state, trace=trace, prefill_config=config)
            context = refresh_usage(context)
            context = context.replace(used_slots=context.used_slots - len(asked.tokens))
    return context, logits if question else None, seconds


def cache_bytes(params: Params, turn: UserTurn, method: Method, reserve: int) -> int:
    """Size of the cache of ``prefill_turn``; an upper bound if the method prunes in the decoder."""
    base, configs, budgets = _plan_turn(params, turn, method)
    slots = _cache_slots(turn, base.backend, configs, budgets, reserve)
    cache = jax.eval_shape(lambda: KVCache.empty(params.config.text, slots, params.cache_dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def _plan_turn(
    params: Params, turn: UserTurn, method: Method
) -> tuple[PrefillConfig, list[PrefillConfig], list[Budget]]:
    """The settings of the turn, and the settings and the budget of each clip."""
    both, backend = Modalities(True, True), Backend.of(params.weights)
    dtypes = params.dtype, params.cache_dtype
    base = PrefillConfig(params.config, method, params.config.spec, both, *dtypes, backend)
    configs = [
        dataclasses.replace(base, spec=clip.spec, modalities=modalities_of(clip))
        for clip in turn.clips
    ]
    counts = [token_counts(clip.windows, params.config) for clip in turn.clips]
    return base, configs, [method.plan(*count) for count in counts]


def _cache_slots(
    turn: UserTurn,
    backend: Backend,
    configs: list[PrefillConfig],
    budgets: list[Budget],
    reserve: int,
) -> int:
    media = sum(
        budget.total + len(config.markers) for budget, config in zip(budgets, configs, strict=True)
    )
    text = sum(len(each.tokens) for each in turn.texts)
    # Short clips and long ones have one cache size each, so that they share their programs.
    short = all(len(clip.windows.mel_length) <= WINDOW_BUCKETS[0] for clip in turn.clips)
    sizes = CACHE_BUCKETS if short else CACHE_BUCKETS[1:]
    return bucket(text + media + reserve + backend.prefill_chunks[-1], sizes)


def encode_clip(
    params: Params,
    windows: Window,
    progress: bool = False,
    wants: frozenset[str] = frozenset(),
) -> EncodedWindow:
    """Encode a clip; the result is padded with empty windows to the window bucket of the clip.

    ``wants`` are the encoder features that a method needs beyond embeddings (``Method.wants``).
    """
    total, encoded = -(-len(windows.mel_length) // ENCODE_BLOCK), None
    blocks = encode_blocks(params, windows, wants)
    for encoded in tqdm(blocks, "encoding", total, unit="block", disable=not progress):
        if progress:  # dispatch runs ahead of the device, a progress bar should not
            jax.block_until_ready(encoded)
    assert encoded is not None, "a clip has at least one window"
    return encoded


def encode_blocks(
    params: Params, windows: Window, wants: frozenset[str] = frozenset()
) -> Iterator[EncodedWindow]:
    """Encode a clip in blocks of ``ENCODE_BLOCK`` windows, one program for all lengths.

    Yields the result of ``encode_clip`` as far as it is complete; each is donated to the next. The
    pixels of one block at a time are padded.
    """
    config, count = params.config, len(windows.mel_length)
    backend = Backend.of(params.weights)
    total, encoded = bucket(count, WINDOW_BUCKETS), None
    for start in range(0, count, ENCODE_BLOCK):
        block = jax.tree.map(lambda x, at=start: x[at : at + ENCODE_BLOCK], windows)
        block = pad_windows(block, ENCODE_BLOCK)
        with jax_defaults():  # not around the yield
            new = family(config).encode_windows(
                params.weights,
                block,
                config=config,
                dtype=params.dtype,
                backend=backend,
                wants=wants,
            )
            if encoded is None and total > ENCODE_BLOCK:
                encoded = jax.tree.map(
                    lambda x: jnp.zeros((total, *x.shape[1:]), x.dtype, device=x.sharding), new
                )
            encoded = new if encoded is None else _write_block(encoded, new, start)
        yield encoded


@functools.partial(jax.jit, donate_argnames="encoded")
def _write_block(encoded: EncodedWindow, block: EncodedWindow, start: int) -> EncodedWindow:
    def write(x: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, 0)

    return jax.tree.map(write, encoded, block)


def encoded_clip(clip: Clip, encoded: EncodedWindow) -> EncodedClip:
    """A clip's encoded windows with their geometry."""
    layout = pad_windows(geometry(clip.windows), len(encoded.video_mask))
    return EncodedClip(encoded, layout, jnp.int32(len(clip.windows.mel_length) - 1))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall time of the block to ``seconds[name]``."""
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
