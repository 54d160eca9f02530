"""Questions as steps on the device: about clips, and about what a session remembers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression import Method
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.inference.context import Context, fork
from omnizip_jax.inference.decode import SamplingParams, end_tokens
from omnizip_jax.inference.generation import GenerationState, begin, begin_at
from omnizip_jax.inference.inputs import UserTurn, check_positions
from omnizip_jax.inference.kv_cache import ensure_capacity, refresh_usage
from omnizip_jax.inference.prefill import (
    encode_clip,
    read_text,
    read_turn,
    read_with_question,
    remember_text,
)
from omnizip_jax.inference.sequence import ENCODE_BLOCK, padded_length, padded_text
from omnizip_jax.inference.streaming import feed
from omnizip_jax.media import Clip
from omnizip_jax.models.params import Params
from omnizip_jax.serve.engine import Engine, context_bytes
from omnizip_jax.serve.job import Going
from omnizip_jax.serve.session import Session
from omnizip_jax.serve.stop_strings import Stop
from omnizip_jax.types import EncodedWindow, Window

Said = tuple[str, str]  # what a user asked, and what was answered


@dataclasses.dataclass(frozen=True)
class Asking:
    """How an answer is wanted.

    Attributes:
        history: what was said before it, of a clip; a session remembers by itself.
        keep: the session remembers question and answer.
    """

    question: str
    history: tuple[Said, ...] = ()
    sampling_params: SamplingParams = SamplingParams()  # noqa: RUF009 (frozen)
    stop: tuple[str, ...] = ()
    keep: bool = False


@dataclasses.dataclass(frozen=True)
class Begun:
    """The question is read; the answer begins."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """More of the answer."""

    text: str


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answer is complete.

    Attributes:
        text: all of it.
        finish: "stop", or "length" if it was cut.
        prompt, made: tokens that the decoder read before the answer, and of the answer.
        audio, audio_kept, video, video_kept: media tokens before and after the method.
        seconds: on the device, by stage.
    """

    text: str
    finish: str
    prompt: int
    made: int
    audio: int
    audio_kept: int
    video: int
    video_kept: int
    seconds: dict[str, float]


def about_clips(
    engine: Engine,
    clips: Sequence[Clip] | Context,
    parts: Sequence[str | int],
    system: str,
    method: Method,
    asking: Asking,
    key: Hashable,
) -> Iterator[Any]:
    """Steps of an answer about clips; the context of the clips is kept for the next one.

    Args:
        clips: in their order; or the context that they left.
        parts: what stands before the question: texts, and numbers of clips.
        key: under which the context is kept.
    """
    params = engine.params
    kept = clips if isinstance(clips, Context) else engine.contexts.get(key)
    if kept is None:
        assert not isinstance(clips, Context)
        shown = [part if isinstance(part, str) else clips[part] for part in parts]
        first = asking.history[0][0] if asking.history else asking.question
        turn = UserTurn.of(params, [*shown, first], system)
        check_positions(turn, asking.sampling_params.max_new_tokens, params.config)
        encoded: list[EncodedWindow] = []
        for clip in turn.clips:
            blocks = []
            for block in _blocks(params, clip, method):
                blocks.append(block)
                yield None
            encoded.append(jax.tree.map(lambda *x: jnp.concatenate(x), *blocks))
        engine.metrics.clips_read.inc()
        if turn.clips and method.stages(params.config.text.layers):
            yield from _staged(engine, turn, encoded, method, asking)
            return
        kept, _ = read_turn(params, turn, method, turn.room(256), encoded=encoded)
        del encoded, turn, shown  # pixels and features are not needed to answer
        _count_media(engine, kept)
        engine.contexts.put(key, kept, context_bytes(kept))
        engine.metrics.kept_bytes.set(engine.contexts.bytes)
        yield None
    else:
        engine.metrics.clips_remembered.inc()
    with engine.holding(kept):
        context = fork(kept)
        del kept
        for said in asking.history:
            context = remembered(params, context, *said)
            yield None
        generation = begin(params, context, asking.question, asking.sampling_params, copy=False)
        del context
        yield from _answer(engine, generation, asking)


def about_stream(
    engine: Engine, session: Session, arrived: int, partial: Sequence[Window], asking: Asking
) -> Iterator[Any]:
    """Steps of an answer about what a session remembers; the session goes on meanwhile.

    Submit them as ``first``, or windows that come after the question may count, too.

    Args:
        arrived: windows before this number count for the answer.
        partial: windows that are not complete, and count too.
    """
    engine.read_due(session, arrived)
    with engine.holding(engine.context_of(session)):
        context = fork(engine.context_of(session))
        yield None
        for window in partial:
            context = jax.block_until_ready(feed(engine.params, context, window))
            yield None
        generation = begin(
            engine.params, context, asking.question, asking.sampling_params, copy=False
        )
        del context

        def keep(text: str) -> None:
            if not session.ended:
                before = engine.context_of(session)
                engine.go_on(session, remembered(engine.params, before, asking.question, text))

        yield from _answer(engine, generation, asking, keep if asking.keep else None)


def remembered(params: Params, context: Context, question: str, answer: str) -> Context:
    """What would be remembered had this been asked and answered; the context is used up."""
    tokenizer, config = params.tokenizer, context.prefill_config.config
    medium = context.prefill_config.modalities if bool(context.state.in_video) else None
    asked = prompts.question(tokenizer, config, question, medium)
    words = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rest = [*words, end_tokens(tokenizer)[0], *prompts.closing(tokenizer).tolist()]
    offsets = int(asked.offsets[-1]) + 1 + np.arange(len(rest), dtype=np.int32)
    text = padded_text(
        np.concatenate([asked.tokens, np.array(rest, np.int32)]),
        np.concatenate([asked.offsets, offsets]),
    )
    context = refresh_usage(ensure_capacity(context, len(text.tokens), len(text.tokens)))
    start, place = context.state.after, context.used_slots
    context, _ = read_text(params, context, text, start)
    return remember_text(context, place, start + int(offsets[-1]) + 1)


def _blocks(params: Params, clip: Clip, method: Method) -> Iterator[EncodedWindow]:
    """A clip through the encoders, a block at a time; together what ``encode_clip`` gives."""
    for start in range(0, padded_length(len(clip.windows.mel_length)), ENCODE_BLOCK):
        block = jax.tree.map(lambda x, at=start: x[at : at + ENCODE_BLOCK], clip.windows)
        encoded = encode_clip(params.weights, block, params.config, wants=method.wants)
        yield jax.block_until_ready(encoded)


def _staged(
    engine: Engine, turn: UserTurn, encoded: list[EncodedWindow], method: Method, asking: Asking
) -> Iterator[Any]:
    """A clip that is pruned inside the decoder is read along with its question."""
    if asking.history:
        raise ValueError(
            f"{type(method).__name__} reads a clip with the eyes of one question: ask it without "
            "earlier turns, or take another method"
        )
    room = asking.sampling_params.max_new_tokens
    context, logits, _ = read_with_question(
        engine.params, turn, method, room, encoded=encoded[0] if len(encoded) == 1 else None
    )
    _count_media(engine, context)
    with engine.holding(context):
        yield from _answer(
            engine, begin_at(context, logits, turn.question, asking.sampling_params), asking
        )


def _answer(
    engine: Engine,
    generation: GenerationState,
    asking: Asking,
    keep: Callable[[str], None] | None = None,
) -> Generator[Any, GenerationState, None]:
    """The steps from a question that was read to the end of its answer.

    Args:
        keep: is given the answer before anybody is told that it is complete, so that whoever then
            asks again is answered by one who remembers.
    """
    params, stop = engine.params, Stop(asking.stop)
    read, began = generation.begin, time.perf_counter()
    news: Any = Begun()
    while not (generation.finished or stop.stopped):
        made = len(generation.ids)
        generation = yield Going(generation, news)
        engine.metrics.tokens.inc(len(generation.ids) - made)
        piece = stop.push(generation.piece, last=generation.finished)
        news = Piece(piece) if piece else None
    yield news
    if keep is not None:
        keep(stop.text)
    ended = stop.stopped or generation.ids[-1] in end_tokens(params.tokenizer)
    state = generation.context.state
    (audio, video), (audio_kept, video_kept) = state.seen.tolist(), state.kept.tolist()
    yield Answered(
        text=stop.text,
        finish="stop" if ended else "length",
        prompt=read + generation.question,
        made=len(generation.ids),
        audio=audio,
        audio_kept=audio_kept,
        video=video,
        video_kept=video_kept,
        seconds=generation.seconds | {"answer": time.perf_counter() - began},
    )


def _count_media(engine: Engine, context: Context) -> None:
    engine.metrics.media_tokens.inc(int(np.sum(context.seen)))
    engine.metrics.media_tokens_kept.inc(int(np.sum(context.kept)))
