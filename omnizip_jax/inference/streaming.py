"""Streams: a context to which windows are appended as they arrive.

``feed`` returns the next state. It donates the cache of the state that is passed in, unless it
raises an error; then that state is unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.compression.novelty_weights import Novelty, NoveltyState
from omnizip_jax.inference.chat_template import Modalities, segments
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
from omnizip_jax.inference.decode import check_count, check_seed
from omnizip_jax.inference.kv_cache_capacity import ensure_capacity
from omnizip_jax.inference.prefill import prefill_prefix, prefill_windows
from omnizip_jax.inference.sequence import geometry
from omnizip_jax.media import check_windows
from omnizip_jax.models.backend import Backend, jax_defaults
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.loaded_model import Params, check_params, weights_fingerprint
from omnizip_jax.models.registry import family
from omnizip_jax.types import EncodedClip, EncodedWindow, Selection, Window
from omnizip_jax.window_spec import WindowSpec, check_flags


@jax_defaults()
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
    system: str | None = None,
    spec: WindowSpec | None = None,
    seed: int = 0,
) -> Context:
    """Begin a stream: prefill the prompt up to the video.

    Args:
        params: from ``omnizip_jax.load``.
        compression: a method that supports streams; None keeps all tokens.
        capacity: slots of the cache, for the prompt, the history, a question and its answer.
        memory: eviction policy of a full cache: "fading" evicts tokens of old windows, the least
            important first, so that the older a window, the fewer of its tokens are retained;
            "recent" evicts the oldest windows.
        low_water: share of the history's capacity that is in use after an eviction.
        text_slots: slots that windows leave free for a question and its answer.
        audio, video: False for a stream without that modality.
        system: the system prompt; None: the model's default, "" none.
        spec: the shape of a window; the checkpoint's own by default.
        seed: of methods that sample randomly.

    Raises:
        ValueError: settings out of range, a method that needs the whole clip, or a capacity too
            small for the prompt, a window and a question.
    """
    check_params(params)
    config = params.config
    spec = config.spec if spec is None else spec
    family(config).check_spec(spec, config)
    check_seed(seed)
    check_flags(audio=audio, video=video)
    check_count("capacity", capacity, 1)
    check_count("text_slots", text_slots, 1)
    if memory not in ("recent", "fading"):
        raise ValueError(f'memory must be "recent" or "fading", got {memory!r}')
    number = isinstance(low_water, int | float) and not isinstance(low_water, bool)
    if not (number and 0.1 <= low_water <= 0.95):
        raise ValueError(f"low_water must be a share between 0.1 and 0.95, got {low_water!r}")
    if not (audio or video):
        raise ValueError("audio and video are both False: at least one is needed")
    method, modalities = _stream_method(params, compression), Modalities(audio, video)
    backend, importance = Backend.of(params.weights), memory == "fading"
    dtypes = params.dtype, params.cache_dtype
    prefill_config = PrefillConfig(config, method, spec, modalities, *dtypes, backend, importance)
    prefix = segments(params.tokenizer, config, [prefill_config.modalities, "?"], system)[0].tokens
    window = prefill_config.window_capacity
    history = capacity - window - text_slots
    low = int(low_water * history)
    if low < len(prefix) + window:
        least = math.ceil((len(prefix) + window) / low_water)
        raise ValueError(
            f"a cache of {capacity} slots is too small: the prompt takes {len(prefix)}, a window "
            f"up to {window}, and text {text_slots}; raise capacity to at least "
            f"{least + window + text_slots + 1}, or lower text_slots"
        )
    if capacity > config.text.max_positions:
        raise ValueError(
            f"the model has {config.text.max_positions} positions; a capacity of {capacity} slots "
            "could never be filled"
        )
    # Eviction reduces positions to half of the model's, and a window must fit then.
    span = config.text.max_positions // 2 + prefill_config.window_positions
    if len(prefix) + span + text_slots > config.text.max_positions:
        raise ValueError(
            f"text_slots {text_slots} are too many for a model of {config.text.max_positions} "
            f"positions: take at most {config.text.max_positions - span - len(prefix)}"
        )
    retention = RetentionPolicy(system, weights_fingerprint(params), memory, low, text_slots)
    plan = initial_plan(params.weights, prefill_config)
    context = Context.initial(params, prefill_config, retention, seed, capacity, *plan)
    masks = jnp.zeros(spec.audio_slots, bool), jnp.zeros((spec.grids, spec.grid_slots), bool)
    return prefill_prefix(params, context, prefix).replace(trace=Selection.of(*masks, *masks))


@jax_defaults()
def change_method(params: Params, state: Context, compression: Method | None) -> Context:
    """Continue a stream with another method; the tokens in the cache are not changed.

    The new method begins as in a new stream. The cache of ``state`` is shared: continue with one of
    the two states.

    Args:
        compression: a method that supports streams; None keeps all tokens.

    Raises:
        ValueError: as ``init_stream``; a state of other parameters, or of whole clips.
    """
    check_context(params, state)
    check_stream(state)
    method = _stream_method(params, compression)
    prefill_config = dataclasses.replace(state.prefill_config, method=method)
    retention, prefix = state.retention, int(state.state.origin)
    window = prefill_config.window_capacity
    low = min(retention.low_water, state.capacity - window - retention.text_slots)
    if low < prefix + window:
        raise ValueError(
            f"a cache of {state.capacity} slots is too small for {method}, which keeps up to "
            f"{window} tokens of a window; begin a stream with a larger capacity"
        )
    plan, _ = commit(initial_plan(params.weights, prefill_config), state.cache.length)
    return state.replace(
        state=state.state.replace(plan=plan),
        prefill_config=prefill_config,
        retention=dataclasses.replace(retention, low_water=low),
    )


@jax_defaults()
def initial_plan(weights: Any, prefill_config: PrefillConfig) -> tuple[Any, NoveltyState | None]:
    """State of the method, and statistics for the importance of tokens, before the first window.

    Raises:
        ValueError: the method needs the whole clip.
    """
    leaves, structure = jax.tree.flatten(weights)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    window = _encoded_shape(prefill_config, structure, kinds)
    expected = NoveltyState.initial(window) if prefill_config.importance else None
    return prefill_config.method.begin(window), expected


@functools.lru_cache(maxsize=64)  # tracing the encoders is the slowest part of a beginning
def _encoded_shape(
    prefill_config: PrefillConfig, structure: Any, kinds: tuple[tuple[Any, Any], ...]
) -> Any:
    """Shapes of an encoded window, for weights of these shapes and dtypes."""
    weights = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    encode = functools.partial(
        family(prefill_config.config).encode_window,
        config=prefill_config.config,
        dtype=prefill_config.dtype,
        backend=prefill_config.backend,
        wants=prefill_config.method.wants,
    )
    return jax.eval_shape(encode, weights, Window.empty(prefill_config.spec))


def feed(params: Params, state: Context, window: Window) -> Context:
    """Append the next window: encode, select, pack, prefill.

    One program, traced once for a stream; the cache of ``state`` is donated. If the cache is full,
    slots are evicted first (``memory``).

    Args:
        window: one window, numpy or jax leaves without a leading axis.

    Raises:
        ValueError: a window of the wrong shape or dtype, or with NaN; a state of other parameters.
            The state is unchanged.
    """
    check_context(params, state)
    check_stream(state)
    check_windows(window, state.prefill_config.spec)
    return advance(params, state, window, reserve=state.retention.text_slots)


@jax_defaults()
def feed_block(params: Params, state: Context, windows: Window) -> Context:
    """Append several windows that are encoded together, one after another.

    The result is that of ``feed`` where windows are encoded independently. Qwen3-Omni's audio
    encoder attends inside blocks of 8 s: four windows at a time are encoded as those of a whole
    clip, with 8 s of latency, while ``feed`` cuts the blocks at every window.

    Args:
        windows: several windows, with a leading axis; their number is static.

    Raises:
        ValueError: no leading axis of windows, or as ``feed``. If it is raised after the first
            window was appended, the state that was passed in can no longer be used.
    """
    check_context(params, state)
    check_stream(state)
    config = state.prefill_config
    is_window = isinstance(windows, Window)
    shape = np.shape(windows.mel_length) if is_window else ()
    if len(shape) != 1 or 0 in shape:
        got = f"mel_length of shape {shape}" if is_window else type(windows).__name__
        raise ValueError(
            "feed_block takes several windows as one Window with a leading axis, for example "
            f"jax.tree.map(lambda *x: np.stack(x), *windows), got {got}; feed takes one window"
        )
    (count,) = shape
    check_windows(windows, config.spec, count)
    windows = _without_unused(windows, config.modalities)
    encoded = family(config.config).encode_windows(
        params.weights,
        windows,
        config=config.config,
        dtype=config.dtype,
        backend=config.backend,
        wants=config.method.wants,
    )
    for i in range(count):
        window, own = jax.tree.map(lambda x, i=i: x[i], (geometry(windows), encoded))
        state = advance(params, state, window, state.retention.text_slots, own)
    return state


@jax_defaults()
def advance(
    params: Params,
    context: Context,
    window: Window,
    reserve: int,
    encoded: EncodedWindow | None = None,
) -> Context:
    """``feed`` without its checks; leaves ``reserve`` slots for text.

    ``encoded`` is the window, if it is encoded already.
    """
    config = context.prefill_config
    slots, span = config.window_capacity, config.window_positions
    context = ensure_capacity(context, slots + reserve, span + reserve)
    cache, state, trace = _feed(
        params.weights, context.cache, context.state, window, encoded, prefill_config=config
    )
    return context.replace(
        cache=cache,
        state=state,
        trace=trace,
        used_slots=context.used_slots + slots,
        used_positions=context.used_positions + span,
    )


@functools.partial(jax.jit, static_argnames="prefill_config", donate_argnames="cache")
def _feed(
    weights: Any,
    cache: KVCache,
    state: StreamState,
    window: Window,
    encoded: EncodedWindow | None = None,
    *,
    prefill_config: PrefillConfig,
) -> tuple[KVCache, StreamState, Selection]:
    """The program of ``feed``, from a window or from its encoders' outputs."""
    config, method = prefill_config.config, prefill_config.method
    settings = config, prefill_config.dtype, prefill_config.backend
    decoder = family(config).bound_decoder(weights, *settings)
    if encoded is None:
        window = _without_unused(window, prefill_config.modalities)
        encoded = family(config).encode_window(weights, window, *settings, wants=method.wants)
    assert encoded is not None
    plan, selection = method.step(state.plan, encoded, jax.random.fold_in(state.key, state.windows))
    expected, importance = state.expected, None
    if prefill_config.importance:
        assert expected is not None
        expected, of_audio, of_video = Novelty().advance(expected, encoded)
        importance = of_audio.importance, of_video.importance
    layout, of_clip, selection = jax.tree.map(
        lambda x: x[None], (geometry(window), encoded, selection)
    )
    capacity = prefill_config.window_capacity
    cache, state, _, trace = prefill_windows(
        decoder, prefill_config, cache, state, EncodedClip(of_clip, layout, jnp.int32(0)),
        selection, capacity, importance=importance,
    )  # fmt: skip
    trace = jax.tree.map(lambda x: x[0], trace)
    return cache, state.replace(plan=plan, expected=expected), trace


def _without_unused(windows: Window, modalities: Modalities) -> Window:
    """Windows without the modalities that a stream leaves out."""
    if not modalities.audio:
        windows = windows.replace(mel_length=jnp.zeros_like(windows.mel_length))
    if not modalities.video:
        windows = windows.replace(grid_mask=jnp.zeros_like(windows.grid_mask))
    return windows


def check_stream(context: Context) -> None:
    """Raise ``ValueError`` unless the context is a stream."""
    if context.retention.memory is None:
        raise ValueError(
            "no windows can be appended to a context of whole clips: begin a stream with "
            "omnizip_jax.init_stream"
        )


def _stream_method(params: Params, compression: Method | None) -> Method:
    """The method; raises ``ValueError`` if it prunes inside the decoder, which needs a question."""
    method = as_method(compression)
    if method.stages(params.config.text.layers):
        raise ValueError(
            f"{type(method).__name__} prunes inside the decoder, so the question must be part of "
            "the prefill, and does not support streams; Seats(before_only=True) does"
        )
    return method
