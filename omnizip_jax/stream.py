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

from omnizip_jax import prompt as prompts
from omnizip_jax.block import after_media, media_block
from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.compression.novelty import Expected, Novelty
from omnizip_jax.config import WindowSpec, check_flags, check_spec
from omnizip_jax.context import (
    Context,
    Keeping,
    Past,
    Reading,
    check_context,
    commit,
)
from omnizip_jax.decode import check_seed
from omnizip_jax.entry import append, read_prefix
from omnizip_jax.layout import geometry
from omnizip_jax.media import check_windows
from omnizip_jax.memory import DEFAULT_MEMORY, Memory
from omnizip_jax.models.families import family
from omnizip_jax.models.params import Params, WeightsMark, check_params
from omnizip_jax.models.text import KVCache
from omnizip_jax.prompt import Medium
from omnizip_jax.room import make_room
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
    reading = Reading.of(params, method, spec, Medium(audio, video))
    prefix = prompts.segments(params.tokenizer, config, [reading.medium, "?"], system)[0].tokens
    room = capacity - reading.block - text_slots  # what the history may grow to
    low = int(low_water * room)
    if low < len(prefix) + reading.block:
        history = math.ceil((len(prefix) + reading.block) / low_water)
        raise ValueError(
            f"a cache of {capacity} slots is too small: the prompt takes {len(prefix)}, a window "
            f"up to {reading.block}, and text {text_slots}; raise capacity to at least "
            f"{history + reading.block + text_slots + 1}, or lower text_slots"
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
    keeping = Keeping(system, WeightsMark(params), memory, low, text_slots)
    context = Context.nothing(params, reading, keeping, seed, *first_plan(params.weights, reading))
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
    reading = dataclasses.replace(state.reading, method=method)
    keeping, prefix = state.keeping, int(state.past.origin)
    low = min(keeping.low_water, state.capacity - reading.block - keeping.text_slots)
    if low < prefix + reading.block:
        raise ValueError(
            f"a cache of {state.capacity} slots is too small for {method}, which keeps up to "
            f"{reading.block} tokens of a window; begin a stream with a larger capacity"
        )
    plan, _ = commit(first_plan(params.weights, reading), state.cache.length)
    return state.replace(
        past=state.past.replace(plan=plan),
        reading=reading,
        keeping=dataclasses.replace(keeping, low_water=low),
    )


def first_plan(weights: Any, reading: Reading) -> tuple[Any, Expected]:
    """What the method remembers, and what is expected, before the first window.

    Raises:
        ValueError: it needs the whole clip.
    """
    leaves, structure = jax.tree.flatten(weights)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    window = _encoded_shape(reading, structure, kinds)
    return reading.method.begin(window), Expected.nothing(window)


@functools.lru_cache(maxsize=64)  # tracing the encoders takes longer than all else of a beginning
def _encoded_shape(reading: Reading, structure: Any, kinds: tuple[tuple[Any, Any], ...]) -> Any:
    """What the encoders make of a window, for weights of these shapes and dtypes."""
    weights = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    encode = functools.partial(
        family(reading.config).encode_window,
        config=reading.config,
        kernels=reading.kernels,
        wants=reading.method.wants,
    )
    return jax.eval_shape(encode, weights, Window.empty(reading.spec))


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
    check_windows(window, state.reading.spec)
    return advance(params, state, window, room=state.keeping.text_slots)


def advance(params: Params, context: Context, window: Window, room: int) -> Context:
    """``feed`` without its checks; leaves ``room`` slots for text."""
    block, span = context.reading.block, context.reading.config.window_positions + 1
    context = make_room(context, block + room, span + room)
    cache, past, trace = _feed(
        params.weights, context.cache, context.past, window, reading=context.reading
    )
    return context.replace(
        cache=cache,
        past=past,
        trace=trace,
        filled=context.filled + block,
        reached=context.reached + span,
    )


@functools.partial(jax.jit, static_argnames="reading", donate_argnames="cache")
def _feed(
    weights: Any, cache: KVCache, past: Past, window: Window, *, reading: Reading
) -> tuple[KVCache, Past, Selection]:
    """The program of ``feed``."""
    config, kernels = reading.config, reading.kernels
    decoder = family(config).bound_decoder(weights, config, kernels)
    if not reading.medium.audio:
        window = window.replace(mel_length=jnp.zeros_like(window.mel_length))
    if not reading.medium.video:
        window = window.replace(grid_mask=jnp.zeros_like(window.grid_mask))
    wants = reading.method.wants
    encoded = family(config).encode_window(weights, window, config, kernels, wants=wants)
    key = jax.random.fold_in(past.key, past.windows)
    plan, selection = reading.method.step(past.plan, encoded, key)
    assert past.expected is not None  # a stream's
    expected, heard, seen = Novelty().come(past.expected, encoded)
    layout, encoded, chosen = jax.tree.map(
        lambda x: x[None], (geometry(window), encoded, selection)
    )
    clip = EncodedClip(encoded, layout, jnp.int32(0))
    block = media_block(decoder, reading, past, clip, chosen, (heard.worth, seen.worth))
    after = after_media(reading, past, clip, chosen)
    cache, past = append(decoder, cache, after, block, reading.block)
    return cache, past.replace(plan=plan, expected=expected), selection.trace


def check_stream(context: Context) -> None:
    """Raise ``ValueError`` unless windows may follow."""
    if context.keeping.memory is None:
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
