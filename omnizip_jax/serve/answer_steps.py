"""Steps of an answer about clips or about a live session, and of a change of method."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from omnizip_jax.compression import Method
from omnizip_jax.inference import chat_template
from omnizip_jax.inference.api import begin_turn
from omnizip_jax.inference.context import Context, fork
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import (
    GenerationState,
    MediaCounts,
    append_exchange,
    begin,
    media_counts,
)
from omnizip_jax.inference.inputs import UserTurn, check_positions
from omnizip_jax.inference.prefill import cache_bytes, encode_blocks, prefill_turn
from omnizip_jax.inference.sequence import CACHE_BUCKETS, TEXT_BUCKETS, bucket
from omnizip_jax.inference.streaming import feed
from omnizip_jax.media import Clip
from omnizip_jax.serve.engine import Engine, context_bytes
from omnizip_jax.serve.errors import RequestError, invalid_input
from omnizip_jax.serve.jobs import DecodeRequest
from omnizip_jax.serve.sessions import Session
from omnizip_jax.types import EncodedWindow, Window

Exchange = tuple[str, str]  # a question and its answer
_MARKUP = 32  # tokens around a text in the chat template, at most
_RESERVE = 256  # slots behind the cached context of a clip


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
    """A question and the settings of its answer.

    Attributes:
        history: earlier exchanges about clips; a session keeps its own.
        keep: add question and answer to the session.
        received: time of the request, of ``time.perf_counter``.
    """

    question: str
    history: tuple[Exchange, ...] = ()
    sampling_params: SamplingParams = SamplingParams()  # noqa: RUF009 (frozen)
    stop: tuple[str, ...] = ()
    keep: bool = False
    received: float = dataclasses.field(default_factory=time.perf_counter, compare=False)


@dataclasses.dataclass(frozen=True)
class AnswerStarted:
    """The question was prefilled."""


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer."""

    text: str


@dataclasses.dataclass(frozen=True)
class AnswerDone(MediaCounts):
    """The answer is complete; the fields are those of the message ``response.text.done``.

    Attributes:
        text: the whole answer.
        finish: "stop", or "length" if it ended at the token limit.
        prompt, made: tokens read before the answer, and tokens of the answer.
        seconds: time on the device by stage.
    """

    text: str
    finish: str
    prompt: int
    made: int
    seconds: dict[str, float]


def answer_about_clips(
    engine: Engine,
    clips: Sequence[Clip] | Context,
    parts: Sequence[str | int],
    system: str | None,
    method: Method,
    request: AnswerRequest,
    key: Hashable,
) -> Iterator[Any]:
    """Steps of an answer about clips; their context is cached.

    Args:
        clips: the clips, or their cached context.
        parts: texts and indices of clips before the question.
        key: under which the context is cached.
    """
    params, sampling_params = engine.params, request.sampling_params
    tokens = sampling_params.max_new_tokens
    # Upper bound on the slots of the earlier exchanges and of the question, padding included.
    texts = [request.question, *itertools.chain(*request.history)]
    plain = params.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    later = sum(len(ids) + _MARKUP for ids in plain["input_ids"]) + TEXT_BUCKETS[-1]
    context, turn = clips if isinstance(clips, Context) else engine.cached_clip(key), None
    if context is None:
        assert not isinstance(clips, Context)
        shown = [part if isinstance(part, str) else clips[part] for part in parts]
        first = request.history[0][0] if request.history else request.question
        turn = UserTurn.of(params, [*shown, first], system)
        with invalid_input():
            check_positions(turn, later + tokens, params.config)
            prunes = bool(turn.clips and method.stages(params.config.text.layers))
            size = cache_bytes(params, turn, method, max(_RESERVE, later + tokens))
        if prunes and (request.history or len(turn.clips) > 1):
            raise RequestError(
                f"{type(method).__name__} prunes inside the decoder, so a clip is prefilled with "
                "one question: ask about one clip without earlier turns, or use another method"
            )
        del clips, shown
    else:
        positions = context.used_positions + later + tokens
        if positions > params.config.text.max_positions:
            raise RequestError(
                f"the conversation needs {positions} positions, and the model has "
                f"{params.config.text.max_positions}: shorten it"
            )
        slots = bucket(context.used_slots + later + tokens, CACHE_BUCKETS)
        size = context_bytes(context) * max(slots, context.capacity) // context.capacity
        prunes = False
        engine.metrics.clip_cache_hits.inc()
    with engine.reserve(size):
        if turn is not None:
            encoded = yield from _encode(engine, turn, method)
            if prunes:
                generation, _ = begin_turn(params, turn, method, sampling_params, encoded=encoded)
                _count_media(engine, generation.context)
                del turn, encoded
                yield from _generate(engine, generation, request)
                return
            context, *_ = prefill_turn(params, turn, method, _RESERVE, encoded=encoded)
            del turn, encoded  # frees frames and features
            _count_media(engine, context)
            engine.cache_clip(key, context)
            yield None
        assert context is not None
        context = fork(context)
        for exchange in request.history:
            context = append_exchange(params, context, *exchange)
            yield None
        generation = begin(params, context, request.question, sampling_params, copy=False)
        del context
        yield from _generate(engine, generation, request)


def _encode(
    engine: Engine, turn: UserTurn, method: Method
) -> Generator[None, None, list[EncodedWindow]]:
    """Steps that encode the clips of a turn, a block of windows each."""
    params, encoded = engine.params, []
    for clip in turn.clips:
        latest = None
        for latest in encode_blocks(params, clip.windows, method.wants):
            jax.block_until_ready(latest)
            yield None
        assert latest is not None, "a clip has at least one window"
        encoded.append(latest)
        del latest
    engine.metrics.clips_read.inc()
    return encoded


def answer_about_session(
    engine: Engine,
    session: Session,
    arrived: int,
    partial: Sequence[Window],
    request: AnswerRequest,
) -> Iterator[Any]:
    """Steps of an answer about a live session, which continues meanwhile.

    Submit them as ``first``; otherwise windows that arrive after the question may be included.

    Args:
        arrived: windows with smaller numbers are included.
        partial: incomplete windows, included for this answer only.
    """
    engine.read_pending(session, arrived)
    params, context = engine.params, engine.context_of(session)
    question = chat_template.question(
        params.tokenizer, params.config, request.question, context.prefill_config.modalities
    )
    used, slots = len(question.tokens), context.retention.text_slots
    if used >= slots:
        raise RequestError(
            f"the question takes {used} tokens, and a session has {slots} for a question and its "
            "answer: shorten it",
            param="text",
        )
    tokens = min(request.sampling_params.max_new_tokens, slots - used)
    sampling_params = dataclasses.replace(request.sampling_params, max_new_tokens=tokens)

    def keep(text: str) -> None:
        if request.keep and not session.ended:
            before = engine.context_of(session)
            engine.set_context(session, append_exchange(params, before, request.question, text))

    session.answers += 1  # it is not idle meanwhile
    try:
        with engine.reserve(context_bytes(context)):
            context = fork(context)
            yield None
            for window in partial:
                context = jax.block_until_ready(feed(params, context, window))
                yield None
            generation = begin(params, context, request.question, sampling_params, copy=False)
            del context
            yield from _generate(engine, generation, request, keep)
    finally:
        session.answers -= 1
        session.used = time.monotonic()


def _generate(
    engine: Engine,
    generation: GenerationState,
    request: AnswerRequest,
    keep: Callable[[str], None] | None = None,
) -> Generator[Any, GenerationState, None]:
    """Steps from a prefilled question to the end of its answer.

    Args:
        keep: called with the answer before ``AnswerDone``, so that the client's next question
            finds it in the session.
    """
    params, stop = engine.params, StopStrings(request.stop)
    prompt, began = generation.begin + generation.question, time.perf_counter()
    event: Any = AnswerStarted()
    while not (generation.finished or stop.stopped):
        made = len(generation.ids)
        generation = yield DecodeRequest(generation, event)
        engine.metrics.tokens.inc(len(generation.ids) - made)
        text = stop.push(generation.piece, last=generation.finished)
        event = TextDelta(text) if text else None
        if text and text == stop.text:
            engine.metrics.first_token.observe(time.perf_counter() - request.received)
    yield event
    if keep is not None:
        keep(stop.text)
    ended = stop.stopped or generation.ids[-1] in params.end_tokens
    stream = generation.context.state
    yield AnswerDone(
        **media_counts(np.asarray(stream.seen), np.asarray(stream.kept)),
        text=stop.text,
        finish="stop" if ended else "length",
        prompt=prompt,
        made=len(generation.ids),
        seconds=generation.seconds | {"answer": time.perf_counter() - began},
    )


def _count_media(engine: Engine, context: Context) -> None:
    engine.metrics.media_tokens.inc(int(np.sum(context.seen)))
    engine.metrics.media_tokens_kept.inc(int(np.sum(context.kept)))


class StopStrings:
    """Ends a text that arrives in pieces before the first of some strings.

    A suffix that may be the beginning of a stop string is held back until that is decided.

    Attributes:
        text: all text passed on so far.
        stopped: a stop string was found.
    """

    def __init__(self, strings: Sequence[str] = ()):
        self.text, self.stopped = "", False
        self._strings, self._held = tuple(strings), ""

    def push(self, piece: str, last: bool = False) -> str:
        """Add a piece and return the text to pass on.

        Args:
            last: no piece follows, so nothing is held back.
        """
        if self.stopped:
            return ""
        held = self._held + piece
        ends = [place for string in self._strings if (place := held.find(string)) >= 0]
        if ends:
            self.stopped = True
            passed, self._held = held[: min(ends)], ""
        else:
            end = len(held) - (0 if last else self._open(held))
            passed, self._held = held[:end], held[end:]
        self.text += passed
        return passed

    def _open(self, text: str) -> int:
        """Length of the longest suffix that begins a stop string."""
        lengths = (n for s in self._strings for n in range(1, len(s)) if text.endswith(s[:n]))
        return max(lengths, default=0)
