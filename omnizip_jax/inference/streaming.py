"""Windows as they arrive: the driver of streams.

A stream is a context that has not ended. ``feed`` takes it and gives back the next one; the cache
is donated, so the state that was given in is used up, unless an error is raised, and then nothing
has been touched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.compression.novelty import Expected, Novelty
from omnizip_jax.config import WindowSpec, check_flags, check_spec
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.inference.context import (
    DEFAULT_MEMORY,
    Context,
    Memory,
    PrefillConfig,
    RetentionPolicy,
    StreamState,
    check_context,
    commit,
)
from omnizip_jax.inference.decode import check_seed
from omnizip_jax.inference.kv_cache import ensure_capacity
from omnizip_jax.inference.prefill import append, read_prefix
from omnizip_jax.inference.sequence import after_media, geometry, media_block
from omnizip_jax.media import check_windows
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.params import Params, WeightsIdentity, check_params
from omnizip_jax.models.registry import family
from omnizip_jax.types import EncodedClip, Selection, Window


def init_stream(
    params: Params,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    *,
    capacity: int = 8192,
    memory: Memory = DEFAULT_MEMORY,
    low_water: float = 0.75,
    text_slots: int = 512,
    audio: bool = True,
    video: bool = True,
    system: str = prompts.DEFAULT_SYSTEM,
    spec: WindowSpec | None = None,
    seed: int = 0,
) -> Context:
    """Begin a stream: prefill the prompt up to where the video starts.

    Args:
        params: from ``omnizip_jax.load``.
        compression: a method that can stream; None keeps all.
        capacity: slots of the cache, for the prompt, the history, a question and its answer.
        memory: what leaves a full cache: "fading" thins old windows out, the older the more, the
            tokens of least worth first; "recent" lets the oldest windows go.
        low_water: share of the history's room that stays in use after the cache was full.
        text_slots: room that windows leave for a question and its answer.
        audio, video: False for a stream that never has sound, or pictures.
        system: the system prompt.
        spec: the shape of a window; the checkpoint's own by default.
        seed: for methods that draw.

    Raises:
        ValueError: settings out of range, a method that needs the whole clip, or a capacity too
            small for the prompt, a window and a question.
    """
    check_params(params)
    config = params.config
    spec = params.config.spec if spec is None else spec
    check_spec(spec)
    family(config).check_spec(spec, config)
    check_seed(seed)
    check_flags(audio=audio, video=video)
    _check_settings(capacity, memory, low_water, text_slots)
    if not (audio or video):
        raise ValueError("audio and video are both False: nothing would be left")
    method = _checked_method(params, compression)
    prefill_config = PrefillConfig.of(params, method, spec, Modalities(audio, video))
    prefix = prompts.segments(params.tokenizer, config, [prefill_config.modalities, "?"], system)[
        0
    ].tokens
    room = capacity - prefill_config.block - text_slots  # what the history may grow to
    low = int(low_water * room)
    if low < len(prefix) + prefill_config.block:
        history = math.ceil((len(prefix) + prefill_config.block) / low_water)
        raise ValueError(
            f"a cache of {capacity} slots is too small: the prompt takes {len(prefix)}, a window "
            f"up to {prefill_config.block}, and text {text_slots}; raise capacity to at least "
            f"{history + prefill_config.block + text_slots + 1}, or lower text_slots"
        )
    if capacity > config.text.max_positions:
        raise ValueError(
            f"the model has {config.text.max_positions} positions; a capacity of {capacity} slots "
            "could never be filled"
        )
    # Forgetting brings positions down to half of what the model has, and a window must fit then.
    span = config.text.max_positions // 2 + config.window_positions + 1
    if len(prefix) + span + text_slots > config.text.max_positions:
        raise ValueError(
            f"text_slots {text_slots} are too many for a model of {config.text.max_positions} "
            f"positions: take at most {config.text.max_positions - span - len(prefix)}"
        )
    retention = RetentionPolicy(system, WeightsIdentity(params), memory, low, text_slots)
    context = Context.initial(
        params, prefill_config, retention, seed, *first_plan(params.weights, prefill_config)
    )
    return read_prefix(params, context, prefix, capacity).replace(trace=_no_trace(spec))


def change_method(params: Params, state: Context, compression: Method | None) -> Context:
    """Go on with another method; what was read stays as it was read.

    The new method knows nothing of the windows before: it begins as in a new stream. The cache of
    ``state`` is shared, so go on with one of the two.

    Args:
        compression: a method that can stream; None keeps all.

    Raises:
        ValueError: as ``init_stream``; a state of other parameters, or one that takes no windows.
    """
    check_context(params, state)
    check_stream(state)
    method = _checked_method(params, compression)
    prefill_config = dataclasses.replace(state.prefill_config, method=method)
    retention, prefix = state.retention, int(state.state.origin)
    low = min(retention.low_water, state.capacity - prefill_config.block - retention.text_slots)
    if low < prefix + prefill_config.block:
        raise ValueError(
            f"a cache of {state.capacity} slots is too small for {method}, which keeps up to "
            f"{prefill_config.block} tokens of a window; begin a stream with a larger capacity"
        )
    plan, _ = commit(first_plan(params.weights, prefill_config), state.cache.length)
    return state.replace(
        state=state.state.replace(plan=plan),
        prefill_config=prefill_config,
        retention=dataclasses.replace(retention, low_water=low),
    )


def first_plan(weights: Any, prefill_config: PrefillConfig) -> tuple[Any, Expected]:
    """What the method remembers, and what is expected, before the first window.

    Raises:
        ValueError: it needs the whole clip.
    """
    leaves, structure = jax.tree.flatten(weights)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    window = _encoded_shape(prefill_config, structure, kinds)
    return prefill_config.method.begin(window), Expected.initial(window)


@functools.lru_cache(maxsize=64)  # tracing the encoders takes longer than all else of a beginning
def _encoded_shape(
    prefill_config: PrefillConfig, structure: Any, kinds: tuple[tuple[Any, Any], ...]
) -> Any:
    """What the encoders make of a window, for weights of these shapes and dtypes."""
    weights = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    encode = functools.partial(
        family(prefill_config.config).encode_window,
        config=prefill_config.config,
        backend=prefill_config.backend,
        wants=prefill_config.method.wants,
    )
    return jax.eval_shape(encode, weights, Window.empty(prefill_config.spec))


def feed(params: Params, state: Context, window: Window) -> Context:
    """Take in the next window: encode, choose, pack, prefill.

    One program, traced once for a stream; the cache of ``state`` is donated. When the cache is
    full, ``memory`` decides what leaves before the window enters.

    Args:
        window: one window, numpy or jax leaves without a leading axis.

    Raises:
        ValueError: a window of the wrong shape or dtype, or with NaN; a state of other parameters.
            The state is then still good.
    """
    check_context(params, state)
    check_stream(state)
    check_windows(window, state.prefill_config.spec)
    return advance(params, state, window, room=state.retention.text_slots)


def advance(params: Params, context: Context, window: Window, room: int) -> Context:
    """``feed`` without its checks; leaves ``room`` slots for text."""
    block, span = context.prefill_config.block, context.prefill_config.config.window_positions + 1
    context = ensure_capacity(context, block + room, span + room)
    cache, state, trace = _feed(
        params.weights, context.cache, context.state, window, prefill_config=context.prefill_config
    )
    return context.replace(
        cache=cache,
        state=state,
        trace=trace,
        used_slots=context.used_slots + block,
        used_positions=context.used_positions + span,
    )


@functools.partial(jax.jit, static_argnames="prefill_config", donate_argnames="cache")
def _feed(
    weights: Any,
    cache: KVCache,
    state: StreamState,
    window: Window,
    *,
    prefill_config: PrefillConfig,
) -> tuple[KVCache, StreamState, Selection]:
    """The program of ``feed``."""
    config, backend = prefill_config.config, prefill_config.backend
    decoder = family(config).bound_decoder(weights, config, backend)
    if not prefill_config.modalities.audio:
        window = window.replace(mel_length=jnp.zeros_like(window.mel_length))
    if not prefill_config.modalities.video:
        window = window.replace(grid_mask=jnp.zeros_like(window.grid_mask))
    wants = prefill_config.method.wants
    encoded = family(config).encode_window(weights, window, config, backend, wants=wants)
    key = jax.random.fold_in(state.key, state.windows)
    plan, selection = prefill_config.method.step(state.plan, encoded, key)
    assert state.expected is not None  # a stream's
    expected, heard, seen = Novelty().advance(state.expected, encoded)
    layout, encoded, chosen = jax.tree.map(
        lambda x: x[None], (geometry(window), encoded, selection)
    )
    clip = EncodedClip(encoded, layout, jnp.int32(0))
    block = media_block(
        decoder, prefill_config, state, clip, chosen, (heard.importance, seen.importance)
    )
    after = after_media(prefill_config, state, clip, chosen)
    cache, state = append(decoder, cache, after, block, prefill_config.block)
    return cache, state.replace(plan=plan, expected=expected), selection.trace


def check_stream(context: Context) -> None:
    """Raise ``ValueError`` unless windows may follow."""
    if context.retention.memory is None:
        raise ValueError(
            "this context was read from whole clips and takes no windows: begin a stream with "
            "omnizip_jax.init_stream"
        )


def _checked_method(params: Params, compression: Method | None) -> Method:
    """A method without stages inside the decoder, which wait for a question."""
    method = as_method(compression)
    if method.stages(params.config.text.layers):
        raise ValueError(
            f"{type(method).__name__} reads with the eyes of a question and cannot follow a "
            "stream; Seats(before_only=True) can"
        )
    return method


def _check_settings(capacity: int, memory: str, low_water: float, text_slots: int) -> None:
    if memory not in ("recent", "fading"):
        raise ValueError(f'memory must be "recent" or "fading", got {memory!r}')
    if isinstance(low_water, bool) or not isinstance(low_water, int | float):
        raise ValueError(f"low_water must be a number, got {low_water!r}")
    if not 0.1 <= low_water <= 0.95:
        raise ValueError(f"low_water is a share between 0.1 and 0.95, got {low_water}")
    for name, value in (("capacity", capacity), ("text_slots", text_slots)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive number of slots, got {value!r}")


def _no_trace(spec: WindowSpec) -> Selection:
    """The trace of no window."""
    audio = jnp.zeros(spec.audio_slots, bool)
    video = jnp.zeros((spec.grids, spec.grid_slots), bool)
    return Selection.of(audio, video, audio, video)
