"""Windows as they arrive: a stream's state, what feeds it, and how it is asked.

A stream is a conversation that has not ended: the prompt's prefix, windows of video, and turns of
text that were to be remembered. Its state is a pytree; ``feed`` and ``ask`` take it and give back
the next one. The cache is donated: the state that was given in is used up, unless an error is
raised, and then nothing has been touched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax import prompt as prompts
from omnizip_jax.compression import CompressedClip, front, init_plan
from omnizip_jax.config import OmniZipConfig, WindowSpec
from omnizip_jax.conversation import closing_tokens, prefix_tokens, question_tokens
from omnizip_jax.decode import Generation, Sampling, complete, end_tokens
from omnizip_jax.generate import TEXT_BLOCK, Answer, TokenCounts, compress_next
from omnizip_jax.memory import AUDIO, START, TEXT, VIDEO, Memory, Slots, forget, survivors
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.qwen2_5_omni import positions as tmrope
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import (
    bound_decoder,
    check_spec,
    encode_window,
    weights_dtype,
)
from omnizip_jax.models.text import KVCache
from omnizip_jax.stream_state import (
    StreamSettings,
    StreamState,
    check_state,
    check_window,
    fingerprint,
)
from omnizip_jax.types import Window

if TYPE_CHECKING:
    from omnizip_jax.models.params import Params


def init_stream(
    params: Params,
    compression: OmniZipConfig | None = OmniZipConfig(),  # noqa: B008 (frozen)
    *,
    capacity: int = 8192,
    memory: Memory = "recent",
    low_water: float = 0.75,
    text_slots: int = 512,
    audio: bool = True,
    system: str = prompts.DEFAULT_SYSTEM,
    spec: WindowSpec = WindowSpec(),  # noqa: B008 (frozen)
) -> StreamState:
    """Begin a stream: prefill the prompt up to where the video starts.

    Args:
        params: from ``omnizip_jax.load``.
        compression: settings of the paper's rule; a stream always plans causally. None keeps all.
        capacity: slots of the cache, for the prompt, the history, a question and its answer.
        memory: what leaves a full cache: "recent" lets the oldest windows go, "fading" thins
            them out, the older the more, the least salient tokens first.
        low_water: share of the history's room that stays in use after the cache was full.
        text_slots: room that windows leave for a question and its answer.
        audio: False for a stream that never has sound.
        system: the system prompt.
        spec: the shape of a window.

    Raises:
        ValueError: settings out of range, the published rule (it needs the whole clip), or a
            capacity too small for the prompt, a window and a question.
    """
    config = params.config
    check_spec(spec, config)
    if memory not in ("recent", "fading"):
        raise ValueError(f'memory must be "recent" or "fading", got {memory!r}')
    if not 0.1 <= low_water <= 0.95:
        raise ValueError(f"low_water is a share between 0.1 and 0.95, got {low_water}")
    if compression is not None:
        if compression.rule != "paper":
            raise ValueError("the published rule needs the whole clip; stream the paper's rule")
        compression = dataclasses.replace(compression, causal=True)
    settings = StreamSettings(
        model=config,
        weights=fingerprint(params),
        compression=compression,
        spec=spec,
        audio=audio,
        memory=memory,
        low_water=0,
        text_slots=text_slots,
        system=system,
        kernels=Kernels.of(params.weights),
    )
    prefix = prefix_tokens(params, settings)
    room = capacity - settings.block - text_slots  # what the history may grow to
    settings = dataclasses.replace(settings, low_water=int(low_water * room))
    if settings.low_water < len(prefix) + settings.block:
        history = math.ceil((len(prefix) + settings.block) / low_water)
        raise ValueError(
            f"a cache of {capacity} slots is too small: the prompt takes {len(prefix)}, a window "
            f"up to {settings.block}, and text {text_slots}; raise capacity to at least "
            f"{history + settings.block + text_slots + 1}, or lower text_slots"
        )
    if capacity > config.text.max_positions:
        raise ValueError(
            f"the model has {config.text.max_positions} positions; a capacity of {capacity} slots "
            "could never be filled"
        )
    dtype = weights_dtype(params.weights)
    tokens, positions, count = _padded(prefix)
    cache = KVCache.empty(config.text, capacity, dtype)
    cache, _ = _append_text(
        params.weights,
        cache,
        tokens,
        positions,
        count,
        config=config,
        kernels=settings.kernels,
    )
    state = StreamState(
        cache=cache,
        slots=Slots.empty(capacity),
        plan=init_plan(
            compression or OmniZipConfig(causal=True),
            config.audio.n_window,
            config.audio.heads,
            config.audio.head_dim,
            dtype,
        ),
        origin=count,
        time=count,
        base=count,
        after=count,
        unit=jnp.int32(0),
        in_video=jnp.bool_(False),
        seen=jnp.zeros(2, jnp.int32),
        kept=jnp.zeros(2, jnp.int32),
        trace=_no_trace(spec),
        settings=settings,
    )
    return _commit(state, cache.length)


def feed(params: Params, state: StreamState, window: Window) -> StreamState:
    """Take in the next window: encode, score, select, merge, rate, ISTC, pack, prefill.

    One program, traced once for a stream; the cache of ``state`` is donated. When the cache is
    full, ``memory`` decides what leaves before the window enters.

    Args:
        window: one window, numpy or jax leaves without a leading axis.

    Raises:
        ValueError: a window of the wrong shape or dtype, or with NaN; a state of other parameters.
            The state is then still good.
    """
    check_state(params, state)
    check_window(window, state.settings)
    settings = state.settings
    return _advance(params, _make_room(state, settings.block + settings.text_slots), window)


def ask(
    params: Params,
    state: StreamState,
    question: str,
    *,
    keep: bool = False,
    window: Window | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> tuple[Answer, StreamState]:
    """Ask about what the stream remembers.

    Args:
        question: the user's text.
        keep: remember question and answer, so that later questions can refer to them; otherwise
            the stream goes on as if nobody had asked.
        window: a window that is only partly filled, and counts for this answer (and, with
            ``keep``, for the history).
        max_new_tokens, temperature, top_p, seed, on_text: as in ``generate``.

    Raises:
        ValueError: a question that does not fit, a bad window, a state of other parameters. The
            state is then still good.
    """
    began = time.perf_counter()
    sampling = Sampling.of(temperature, top_p)
    check_state(params, state)
    settings = state.settings
    if window is not None:
        check_window(window, settings)
    in_video = bool(state.in_video) or window is not None
    suffix, offsets = question_tokens(params, settings, question, in_video)
    tokens, offsets_padded, count = _padded(suffix, offsets)
    closing = closing_tokens(params) if keep else np.zeros(0, np.int32)
    room = settings.text_slots - len(tokens) - len(_padded(closing)[0])
    if not 0 < max_new_tokens <= room:
        raise ValueError(
            f"the question takes {len(suffix)} tokens and leaves room for an answer of up to "
            f"{max(room, 0)}, max_new_tokens is {max_new_tokens}: shorten the question, or ask "
            "for fewer tokens"
        )
    state = _make_room(state, settings.text_slots + (settings.block if window is not None else 0))
    length = int(state.cache.length)  # the cache is donated below, its length with it
    asked = state if window is None else _advance(params, state, window)
    begin = int(asked.cache.length)
    cache, logits = _append_text(
        params.weights,
        asked.cache,
        tokens,
        asked.after + offsets_padded,
        count,
        config=settings.model,
        kernels=settings.kernels,
    )
    jax.block_until_ready(logits)
    seconds = {"prefill": time.perf_counter() - began}
    generation = Generation(
        cache=cache,
        logits=logits,
        position=asked.after + int(offsets[-1]) + 1,
        key=_commit(jax.random.key(seed), logits),
        finished=_commit(jnp.bool_(False), logits),
    )
    text, ids, generation = complete(params, generation, sampling, max_new_tokens, on_text)
    seconds["generation"] = time.perf_counter() - began - seconds["prefill"]
    seen, kept = asked.seen.tolist(), asked.kept.tolist()
    answer = Answer(
        text=text,
        token_ids=tuple(ids),
        counts=TokenCounts(seen[0], kept[0], seen[1], kept[1], len(suffix), len(ids)),
        compression=None,
        clip=None,
        seconds=seconds,
    )
    if keep:
        return answer, _remember_turn(params, asked, generation, begin, closing)
    # The slots behind `length` were written over, and will be again.
    cache = generation.cache.replace(length=_commit(jnp.int32(length), logits))
    return answer, state.replace(cache=cache)


def seconds_of(state: StreamState) -> int:
    """Stream time: seconds of windows that have been fed."""
    return int(state.plan.window) * state.settings.spec.seconds


@functools.partial(jax.jit, donate_argnames="cache")
def _feed(
    weights: Any, cache: KVCache, state: StreamState, window: Window
) -> tuple[KVCache, StreamState]:
    """The program of ``feed``; ``state`` comes without its cache, which alone is donated."""
    settings = state.settings
    config, spec = settings.model, settings.spec
    decoder = bound_decoder(weights, config, settings.kernels)

    if not settings.audio:
        window = window.replace(mel_length=jnp.zeros_like(window.mel_length))
    encoded = encode_window(weights, window, config, settings.kernels)
    audio_mask, video_mask = encoded.audio.token_mask, encoded.video_mask
    plan, trace = compress_next(state.plan, encoded, settings.compression)

    opens = ~state.in_video
    begin = state.time + opens
    base = jnp.where(opens, begin, state.base)
    start = jnp.array(settings.start_tokens, jnp.int32)
    markers = len(settings.start_tokens)
    embeddings = jnp.concatenate(
        [
            decoder.embed(start),
            encoded.video.reshape(-1, config.text.hidden),
            trace.audio,
        ]
    )
    places = tmrope.window_positions(window, begin, base, spec.grid_slots, spec.audio_slots)
    positions = jnp.concatenate([jnp.full((3, markers), state.time), places], axis=1)
    keep = jnp.concatenate(
        [jnp.full(markers, opens), trace.video_keep.reshape(-1), trace.audio_keep]
    )
    kind = np.repeat([START, VIDEO, AUDIO], [markers, spec.video_slots, spec.audio_slots])
    described = Slots(
        kind=jnp.asarray(kind, jnp.int32),
        unit=jnp.where(kind == START, state.unit, state.unit + 1),
        time=jnp.where(kind == START, state.time, begin),
        base=jnp.broadcast_to(base, kind.shape),
        rank=jnp.concatenate([jnp.zeros(markers), _ranks(trace)]),
    )

    index, used = front(keep, settings.block)
    count = jnp.sum(used)
    slots = state.slots.write(jax.tree.map(lambda x: x[index], described), cache.length)
    _, cache = decoder(embeddings[index], positions[:, index], cache, count)

    exists = jnp.any(audio_mask) | jnp.any(video_mask)
    after = tmrope.position_after(window, audio_mask, begin, base)
    return cache, state.replace(
        slots=slots,
        plan=plan,
        time=begin + config.window_positions,
        base=base,
        after=jnp.where(exists, after, jnp.where(opens, begin, state.after)),
        unit=state.unit + 2,
        in_video=jnp.bool_(True),
        seen=state.seen + jnp.stack([jnp.sum(audio_mask), jnp.sum(video_mask)]),
        kept=state.kept + jnp.stack([jnp.sum(trace.audio_keep), jnp.sum(trace.video_keep)]),
        trace=trace.replace(audio=None),
    )


def _ranks(trace: CompressedClip) -> Float[Array, " slots"]:
    """Place of each token in its window's order of salience, video slots first.

    Audio and each grid are ranked on their own, then spread over as many places as were kept.
    """
    total = jnp.sum(trace.audio_keep) + jnp.sum(trace.video_keep)
    video = trace.video_order / jnp.maximum(jnp.sum(trace.video_keep, -1, keepdims=True), 1)
    audio = trace.audio_order / jnp.maximum(jnp.sum(trace.audio_keep), 1)
    return jnp.concatenate([video.reshape(-1), audio]) * total


@functools.partial(jax.jit, static_argnames=("config", "kernels"), donate_argnames="cache")
def _append_text(
    weights: Any,
    cache: KVCache,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    count: Int[Array, ""],
    *,
    config: ModelConfig,
    kernels: Kernels,
) -> tuple[KVCache, Float[Array, " V"]]:
    """Append ``count`` text tokens to the cache; the logits after the last."""
    decoder = bound_decoder(weights, config, kernels)
    embeddings = decoder.embed(tokens)
    positions = jnp.broadcast_to(positions, (3, tokens.shape[0]))
    hidden, cache = decoder(embeddings, positions, cache, count)
    return cache, decoder.logits(hidden[count - 1][None])[0]


@functools.partial(jax.jit, donate_argnames="cache")
def _forget(cache: KVCache, state: StreamState) -> tuple[KVCache, StreamState]:
    """Thin the history to the low-water mark and close up the time; only the cache is donated."""
    settings, slots = state.settings, state.slots
    text = settings.model.text
    keep = survivors(
        slots,
        cache.length,
        state.time,
        settings.memory,
        settings.low_water,
        span=text.max_positions // 2,
    )
    of_video = (slots.kind == START) & (slots.base == state.base)
    cache, slots, now = forget(cache, slots, keep, state.time, state.origin, text)
    return cache, state.replace(
        slots=slots,
        time=now,
        after=jnp.maximum(state.after + now - state.time, state.origin),
        # If nothing of the open video is left, the next window opens one.
        in_video=state.in_video & jnp.any(keep & of_video),
        base=slots.base[cache.length - 1],
    )


def _advance(params: Params, state: StreamState, window: Window) -> StreamState:
    cache, rest = _feed(params.weights, state.cache, state.replace(cache=None), window)
    return rest.replace(cache=cache)


def _make_room(state: StreamState, needed: int) -> StreamState:
    """Forget if ``needed`` slots are not free, or if positions would run out."""
    model = state.settings.model
    fits = int(state.cache.length) + needed <= state.slots.unit.shape[0]
    end = int(state.time) + model.window_positions + state.settings.text_slots
    if fits and end <= model.text.max_positions:
        return state
    cache, rest = _forget(state.cache, state.replace(cache=None))
    return rest.replace(cache=cache)


def _remember_turn(
    params: Params,
    state: StreamState,
    generation: Generation,
    begin: int,
    closing: Int[np.ndarray, " T"],
) -> StreamState:
    """Close the assistant's turn, open the user's next one, and make both part of the history.

    Args:
        begin: slot of the cache at which the question begins.
        closing: tokens between the answer and the user's next words.
    """
    if not bool(generation.finished):
        closing = np.insert(closing, 0, end_tokens(params.tokenizer)[0])
    tokens, offsets, count = _padded(closing)
    cache, _ = _append_text(
        params.weights,
        generation.cache,
        tokens,
        generation.position + offsets,
        count,
        config=state.settings.model,
        kernels=state.settings.kernels,
    )
    place = jnp.arange(state.slots.unit.shape[0])
    new = (place >= begin) & (place < cache.length)

    def mark(old: Array, value: Array | int) -> Array:
        return jnp.where(new, value, old).astype(old.dtype)

    slots = Slots(
        kind=mark(state.slots.kind, TEXT),
        unit=mark(state.slots.unit, state.unit),
        time=mark(state.slots.time, state.after),
        base=mark(state.slots.base, state.after),
        rank=mark(state.slots.rank, 0),
    )
    end = generation.position + count
    return state.replace(
        cache=cache,
        slots=slots,
        time=end,
        after=end,
        base=end,
        unit=state.unit + 1,
        in_video=jnp.zeros_like(state.in_video),
    )


def _padded(
    tokens: Int[np.ndarray, " T"], positions: Int[np.ndarray, " T"] | None = None
) -> tuple[Int[Array, " P"], Int[Array, " P"], Int[Array, ""]]:
    """Tokens and positions (by default counting from 0) in whole blocks, and how many are real."""
    length = len(tokens)
    positions = np.arange(length, dtype=np.int32) if positions is None else positions
    padding = (0, -length % TEXT_BLOCK)
    return (
        jnp.asarray(np.pad(tokens, padding)),
        jnp.asarray(np.pad(positions, padding)),
        jnp.int32(length),
    )


def _no_trace(spec: WindowSpec) -> CompressedClip:
    """The trace of no window."""
    audio = jnp.zeros(spec.audio_slots, bool)
    video = jnp.zeros((spec.grids, spec.grid_slots), bool)
    return CompressedClip(
        audio=jnp.zeros(0),
        audio_keep=audio,
        audio_salient=audio,
        audio_order=audio.astype(jnp.int32),
        video_keep=video,
        video_order=video.astype(jnp.int32),
        audio_retention=jnp.float32(0),
        video_rate=jnp.float32(0),
    ).replace(audio=None)


def _commit(tree: Any, like: Array) -> Any:
    """Put fresh arrays where the model's are; jit would compile again for ones that float."""
    return jax.device_put(tree, like.sharding)
