"""Whole clips: the driver that looks ahead. ``generate`` is ``read`` and ``ask``."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from tqdm import tqdm

from omnizip_jax import prompt as prompts
from omnizip_jax.answer import Answer
from omnizip_jax.compression import Method, OmniZipConfig
from omnizip_jax.config import WindowSpec, check_flags, check_spec
from omnizip_jax.context import (
    Context,
    Keeping,
    Past,
    Reading,
    WeightsMark,
    after_media,
    append,
    append_text,
    check_params,
    commit,
    join,
    make_room,
    measured,
    media_block,
    open_context,
    remember_text,
    text_block,
)
from omnizip_jax.decode import Sampling, check_count, check_seed
from omnizip_jax.layout import (
    ENCODE_BLOCK,
    bucket,
    geometry,
    pad_windows,
    padded_length,
    padded_text,
    token_counts,
)
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.families import Config, family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params
from omnizip_jax.models.text import KVCache
from omnizip_jax.prompt import Medium, Text
from omnizip_jax.reply import Reply, begin, begin_at, check_callback, finish, run
from omnizip_jax.staged import read_staged, stage_sizes
from omnizip_jax.stream import as_method
from omnizip_jax.types import EncodedWindow, Selection, Window

SHOWN = 8  # windows of a clip whose pictures an answer keeps


def generate(
    params: Params,
    video: Any,
    question: str,
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    system: str = prompts.DEFAULT_SYSTEM,
    use_audio: bool = True,
    use_video: bool = True,
    max_frames: int | None = None,
    spec: WindowSpec | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Answer:
    """Answer a question about a video with sound.

    Args:
        params: from ``omnizip_jax.load``.
        video: a path, a URL, ``(frames uint8 [T, H, W, 3], fps, waveform float32 [S], sample
            rate)`` with None for a missing waveform, or a ``Clip``. None asks the language model
            alone.
        question: the user's turn.
        compression: the method; None keeps all tokens.
        max_new_tokens: where to stop if the model does not.
        system: the system prompt.
        use_audio, use_video: set one to False to leave that modality out.
        max_frames: cap on the frames of a long clip; sampled uniformly. None: 2 a second.
        spec: the shape of a window; more ``grid_slots`` keep larger pictures. The checkpoint's own
            by default.
        temperature: 0 is greedy.
        top_p: nucleus sampling: keep the likeliest tokens that hold this mass.
        seed: of the sampling, and of methods that draw.
        on_text: called with every new piece of text as it is made.
        progress: show progress bars for long clips.

    Raises:
        ValueError: an unreadable video, an empty question, a setting out of range, or a prompt
            that is longer than the model's positions.
    """
    prompts.check_question(question)
    return converse(
        params,
        [question] if video is None else [{"video": video}, question],
        compression=compression,
        max_new_tokens=max_new_tokens,
        system=system,
        use_audio=use_audio,
        use_video=use_video,
        max_frames=max_frames,
        spec=spec,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        on_text=on_text,
        progress=progress,
    )


def converse(
    params: Params,
    parts: Sequence[Any],
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    system: str = prompts.DEFAULT_SYSTEM,
    use_audio: bool = True,
    use_video: bool = True,
    max_frames: int | None = None,
    spec: WindowSpec | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Answer:
    """Answer a turn of several clips and texts, in any order; the last part is a text.

    Args:
        parts: texts, and clips as ``{"video": source}``; a ``Path``, a tuple of arrays and a
            ``Clip`` need no wrapping. Each clip is compressed for itself.

    The other arguments, and what is raised, are those of ``generate``.
    """
    check_params(params)
    Sampling.of(temperature, top_p, seed)
    check_count("max_new_tokens", max_new_tokens, 1)
    check_callback(on_text)
    method = as_method(compression)
    seconds: dict[str, float] = {}
    with _timed(seconds, "media"):
        loaded = _load_parts(params, parts, spec, max_frames, use_audio, use_video, progress)
        texts = part_texts(params, loaded, system)
    check_positions(loaded, texts, max_new_tokens, params.config)
    read_before = sum(len(text.tokens) for text in texts[:-1]) + _start_markers(params, loaded)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    if method.stages(params.config.text.layers) and any(isinstance(p, Clip) for p in loaded):
        reply, clip = _begin_staged(params, loaded, texts, method, system, seconds, settings)
    else:
        room = len(padded_text(texts[-1].tokens)[0]) + max_new_tokens
        context, clip = read_parts(
            params, loaded, texts, method, system, room, seed, seconds, progress
        )
        reply = begin(params, context, texts[-1], copy=False, **settings)
        del context
    del loaded  # the pixels are not needed to decode
    trace = reply.context.trace
    answer, _ = finish(params, run(params, reply, on_text))
    prefill = seconds["prefill"] + answer.seconds["prefill"]
    text = read_before + answer.counts.text
    return dataclasses.replace(
        answer,
        counts=dataclasses.replace(answer.counts, text=text),
        compression=trace,
        clip=clip,
        seconds=seconds | answer.seconds | {"prefill": prefill},
    )


def read(
    params: Params,
    video: Any,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    *,
    system: str = prompts.DEFAULT_SYSTEM,
    use_audio: bool = True,
    use_video: bool = True,
    max_frames: int | None = None,
    spec: WindowSpec | None = None,
    room: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Context:
    """Read a clip once, to ``ask`` about it as often as you like.

    Args:
        video: as for ``generate``; or a list of parts as for ``converse``, ending with a clip.
        room: slots for a question and its answer; the cache grows where they need more.

    The other arguments, and what is raised, are those of ``generate``.
    """
    check_params(params)
    check_seed(seed)
    check_count("room", room, 0)
    parts = video if isinstance(video, list) else [] if video is None else [{"video": video}]
    seconds: dict[str, float] = {}
    method = as_method(compression)
    if method.stages(params.config.text.layers):
        raise ValueError(
            f"{type(method).__name__} reads a clip with the eyes of its question: use generate"
        )
    loaded = _load_parts(params, parts, spec, max_frames, use_audio, use_video, progress)
    if loaded and isinstance(loaded[-1], str):
        raise ValueError("what is read ends with a clip: give the last text to ask")
    texts = part_texts(params, [*loaded, "?"], system)
    check_positions(loaded, texts, room, params.config)
    context, _ = read_parts(params, loaded, texts, method, system, room, seed, seconds, progress)
    return context


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
    reading = _reading(params, method, clip)
    texts = part_texts(params, [clip, "?"], system)
    keeping = Keeping(None, 0, 0, system, WeightsMark(params))
    context = _read_next(params, None, reading, keeping, clip, encoded, texts[0], seed)
    return make_room(context, room, room)


def check_positions(
    parts: Sequence[str | Clip], texts: Sequence[Text], max_new_tokens: int, config: Config
) -> None:
    """Raise ``ValueError`` if the answer would end beyond the positions that the model knows."""
    windows = sum(len(part.windows.mel_length) for part in parts if isinstance(part, Clip))
    media = windows * config.window_positions
    end = media + sum(len(text.tokens) + 2 for text in texts) + max_new_tokens
    if end > config.text.max_positions:
        raise ValueError(
            f"the clip ({media} positions, {config.positions_per_second} a second), the question "
            f"and the answer need {end} positions; the model has {config.text.max_positions}: "
            "shorten the clip, or stream it"
        )


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


@functools.partial(
    jax.jit, static_argnames=("reading", "capacity", "fresh"), donate_argnames="cache"
)
def read_clip(
    weights: Any,
    cache: KVCache | None,
    past: Past,
    prefix: Int[Array, " P"],
    length: Int[Array, ""],
    encoded: EncodedWindow,
    layout: Window,
    last: Int[Array, ""],
    *,
    reading: Reading,
    capacity: int,
    fresh: bool,
) -> tuple[KVCache, Past, Selection]:
    """One program from the encoders' outputs to a context: choose, pack, prefill.

    Args:
        prefix, length: tokens of a text before the clip, padded, and how many are real.
        encoded: the clip's windows, padded with empty ones.
        layout: the windows' geometry.
        last: the last window of the clip.
        capacity: static bound on the tokens that the decoder reads here.
        fresh: nothing was read before; the cache, None, is made here, with ``capacity`` slots.
    """
    decoder = family(reading.config).bound_decoder(weights, reading.config, reading.kernels)
    selection = reading.method.select(encoded, jax.random.fold_in(past.key, past.windows))
    if fresh:
        past = past.replace(origin=length, time=length, base=length, after=length)
    block = media_block(decoder, reading, past, layout, encoded, selection)
    if fresh:
        text = text_block(decoder, prefix, jnp.arange(len(prefix)), length)
        block = join(text, block)
        cache = KVCache.empty(reading.config.text, capacity, block.embeddings.dtype)
    assert cache is not None
    _, cache, slots, needed = append(decoder, cache, past.slots, block, capacity, fresh)
    after = after_media(reading, past, layout, encoded, selection, last)
    lost = past.overflow + jnp.maximum(needed - capacity, 0)
    return cache, after.replace(slots=slots, overflow=lost), selection.trace


def read_size(
    audio_counts: Int[np.ndarray, " W"],
    video_counts: Int[np.ndarray, " W"],
    text: int,
    method: Method,
) -> int:
    """Static bound on what the decoder reads of a clip and ``text`` tokens before it."""
    return bucket(method.bound(audio_counts, video_counts) + text)


def read_parts(
    params: Params,
    parts: Sequence[str | Clip],
    texts: Sequence[Text],
    method: Method,
    system: str,
    room: int,
    seed: int,
    seconds: dict[str, float],
    progress: bool,
) -> tuple[Context, Clip | None]:
    """Every clip with the text before it; the last text is left to a question."""
    config = params.config
    keeping = Keeping(None, 0, 0, system, WeightsMark(params))
    clips = [part for part in parts if isinstance(part, Clip)]
    seconds |= {"encoders": 0.0, "prefill": 0.0}
    context = shown = None
    for clip, text in zip(clips, texts, strict=False):
        with _timed(seconds, "encoders"):
            encoded = encode_clip(params.weights, clip.windows, config, progress, method.wants)
            jax.block_until_ready(encoded)
        with _timed(seconds, "prefill"):
            reading = _reading(params, method, clip)
            context = _read_next(params, context, reading, keeping, clip, encoded, text, seed)
        del encoded
        shown = clip.sample(SHOWN)
    if context is None:
        medium, kernels = Medium(audio=True, video=True), Kernels.of(params.weights)
        reading = Reading(config, method, config.spec, medium, kernels)
        prefix = texts[0].tokens
        capacity = bucket(len(prefix) + room)
        context = open_context(params, reading, keeping, prefix, capacity, None, seed)
    return make_room(context, room, room), shown


def _reading(params: Params, method: Method, clip: Clip) -> Reading:
    medium, kernels = Medium(clip.has_audio, clip.has_video), Kernels.of(params.weights)
    return Reading(params.config, method, clip.spec, medium, kernels)


def _read_next(
    params: Params,
    context: Context | None,
    reading: Reading,
    keeping: Keeping,
    clip: Clip,
    encoded: EncodedWindow,
    text: Text,
    seed: int,
) -> Context:
    """The next clip of a conversation, behind the text before it."""
    tokens, offsets, length = padded_text(text.tokens, text.offsets)
    audio, video = token_counts(clip.windows, reading.config)
    last = len(audio) - 1
    starts = len(reading.markers) + (len(tokens) if context is None else 0)
    capacity = read_size(audio, video, starts, reading.method)
    fresh = context is None
    if context is None:
        cache = None
        past = Past.nothing(capacity, None, jax.random.key(seed))
        past = commit(past, jax.tree.leaves(params.weights)[0])
    else:
        context = make_room(context, len(tokens) + capacity, len(tokens))
        cache, _ = append_text(
            params.weights,
            context.cache,
            tokens,
            context.past.after + offsets,
            length,
            config=reading.config,
            kernels=reading.kernels,
        )
        end = context.past.after + int(text.offsets[-1]) + 1
        context = remember_text(context.replace(cache=cache), context.filled, end)
        cache, past = context.cache, context.past
    layout = pad_windows(geometry(clip.windows), len(encoded.video_mask))
    cache, past, trace = read_clip(
        params.weights,
        cache,
        past,
        tokens,
        length,
        encoded,
        layout,
        jnp.int32(last),
        reading=reading,
        capacity=capacity,
        fresh=fresh,
    )
    trace = jax.tree.map(lambda x: np.asarray(x)[: last + 1], trace)
    return measured(Context(cache, past, trace, reading, keeping, 0, 0))


def _begin_staged(
    params: Params,
    parts: Sequence[str | Clip],
    texts: Sequence[Text],
    method: Method,
    system: str,
    seconds: dict[str, float],
    settings: dict[str, Any],
) -> tuple[Reply, Clip]:
    """Clip and question in one prefill, for methods with stages inside the decoder."""
    clips = [part for part in parts if isinstance(part, Clip)]
    if len(clips) > 1:
        raise ValueError(
            f"{type(method).__name__} prunes inside the decoder, which takes one clip at a time; "
            f"got {len(clips)}"
        )
    (clip,), weights, reading = clips, params.weights, _reading(params, method, clips[0])
    with _timed(seconds, "encoders"):
        encoded = encode_clip(weights, clip.windows, params.config, wants=method.wants)
        jax.block_until_ready(encoded)
    audio, video = token_counts(clip.windows, params.config)
    text = sum(len(part.tokens) for part in texts) + len(reading.markers)
    media = method.bound(audio, video)
    stages = method.stages(params.config.text.layers)
    prefix, _, length = padded_text(texts[0].tokens)
    question, offsets, count = padded_text(texts[1].tokens, texts[1].offsets)
    past = commit(Past.nothing(1, None, jax.random.key(settings["seed"])), prefix)
    with _timed(seconds, "prefill"):
        cache, logits, past, trace, lost = read_staged(
            weights,
            past,
            prefix,
            length,
            encoded,
            pad_windows(geometry(clip.windows), len(encoded.video_mask)),
            jnp.int32(len(audio) - 1),
            question,
            offsets,
            count,
            reading=reading,
            capacity=bucket(media + text),
            sizes=stage_sizes(stages, text, media),
            room=bucket(settings["max_new_tokens"]),
        )
        if np.any(np.asarray(lost)):
            raise ValueError(
                f"{method} kept {np.asarray(lost).tolist()} tokens more than its bounds, and they "
                "were lost: the bound of its selection or of a stage is too low"
            )
    trace = jax.tree.map(lambda x: np.asarray(x)[: len(audio)], trace)
    keeping = Keeping(None, 0, 0, system, WeightsMark(params))
    context = Context(cache, past, trace, reading, keeping, 0, 0)
    return begin_at(context, logits, texts[1], **settings), clip.sample(SHOWN)


def _load_parts(
    params: Params,
    parts: Sequence[Any],
    spec: WindowSpec | None,
    max_frames: int | None,
    use_audio: bool,
    use_video: bool,
    progress: bool,
) -> list[str | Clip]:
    spec = params.config.spec if spec is None else spec
    check_spec(spec)
    check_flags(use_audio=use_audio, use_video=use_video)
    family(params.config).check_spec(spec, params.config)
    if not isinstance(parts, list | tuple):
        raise ValueError(
            f"parts must be a list of texts and clips with the question last, got "
            f"{type(parts).__name__}"
        )
    out: list[str | Clip] = []
    for part in parts:
        if isinstance(part, Mapping):
            if set(part) != {"video"}:
                raise ValueError(
                    f'a clip among the parts is {{"video": source}}, got a mapping of {list(part)}'
                )
            part = part["video"]
        elif not isinstance(part, str | Path | tuple | Clip):
            raise ValueError(
                f'a part is a text, a clip as {{"video": source}}, a Path, a tuple of arrays or a '
                f"Clip; got {type(part).__name__}"
            )
        elif isinstance(part, str):
            out.append(part)
            continue
        if not isinstance(part, Clip):
            part = load_clip(
                part,
                spec,
                max_frames=max_frames,
                max_windows=params.config.text.max_positions // params.config.window_positions,
                use_audio=use_audio,
                use_video=use_video,
                progress=progress,
            )
        out.append(part)
    return out


def part_texts(params: Params, parts: Sequence[str | Clip], system: str) -> list[Text]:
    """The texts before, between and after the clips; of a turn without one, its opening first."""
    tokenizer, config = params.tokenizer, params.config
    shapes = [p if isinstance(p, str) else Medium(p.has_audio, p.has_video) for p in parts]
    texts = prompts.segments(tokenizer, config, shapes, system)
    if len(texts) > 1:
        return texts
    opening = prompts.segments(tokenizer, config, [Medium(True, True), "?"], system)[0]
    cut, tokens = len(opening.tokens), texts[0].tokens
    return [Text(part, np.arange(len(part), dtype=np.int32)) for part in np.split(tokens, [cut])]


def _start_markers(params: Params, parts: Sequence[str | Clip]) -> int:
    """Tokens that open the clips; no text has them."""
    config = params.config
    shapes = [(part.has_audio, part.has_video) for part in parts if isinstance(part, Clip)]
    return sum(len(family(config).start_markers(config, *shape)) for shape in shapes)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
