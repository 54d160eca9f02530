"""Questions to a context: begin, step, finish; and ``ask``, which does all three."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax import prompt as prompts
from omnizip_jax.answer import Answer, TokenCounts
from omnizip_jax.config import check_flags
from omnizip_jax.context import Context, check_context, commit, fork
from omnizip_jax.decode import (
    DECODE_BLOCK,
    Decoding,
    Generation,
    Sampling,
    end_tokens,
    generate_tokens,
    new_text,
)
from omnizip_jax.entry import read_text, remember_text
from omnizip_jax.layout import TEXT_BLOCK, padded_text
from omnizip_jax.media import check_windows
from omnizip_jax.models.params import Params
from omnizip_jax.prompt import Text
from omnizip_jax.room import make_room, measured
from omnizip_jax.stream import advance, check_stream
from omnizip_jax.types import Window


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer in the making.

    Attributes:
        context: what was asked, without its cache, which went into the generation.
        generation: the loop's state.
        question: tokens of the question.
        begin: slot of the cache at which the question begins.
        ids: tokens made so far, the end token included.
        text: whole characters made so far; ``piece`` is what the last step added.
        finished: nothing more will come.
        max_new_tokens, sampling: as asked.
        seconds: wall time by stage so far.
    """

    context: Context
    generation: Generation
    question: int
    begin: int
    ids: tuple[int, ...]
    text: str
    piece: str
    finished: bool
    max_new_tokens: int
    sampling: Sampling
    seconds: dict[str, float]


def ask(
    params: Params,
    context: Context,
    question: str,
    *,
    keep: bool = False,
    window: Window | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> tuple[Answer, Context]:
    """Ask about what was read: a clip, or what a stream remembers.

    The context that is given in stays good, whatever happens: the answer is made on a copy of its
    cache, which is let go of unless ``keep``.

    Args:
        question: the user's text.
        keep: remember question and answer, so that later questions can refer to them; otherwise
            the conversation goes on as if nobody had asked.
        window: a window of a stream that is only partly filled, and counts for this answer (and,
            with ``keep``, for the history).
        max_new_tokens: where to stop if the model does not.
        temperature: 0 is greedy.
        top_p: nucleus sampling: keep the likeliest tokens that hold this mass.
        seed: of the sampling.
        on_text: called with every new piece of text as it is made.

    Returns:
        The answer, and the context to go on with.

    Raises:
        ValueError: a question that does not fit, a bad setting or window, other parameters.
    """
    check_flags(keep=keep)
    check_callback(on_text)
    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    reply = begin(params, context, question, decoding, window=window, keep=keep)
    reply = run(params, reply, on_text)
    answer, after = finish(params, reply, keep=keep)
    return answer, after if after is not None else context


def stream_answer(
    params: Params,
    context: Context,
    question: str,
    *,
    window: Window | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """The pieces of an answer's text as they are made; settings and errors as for ``ask``.

    Leave the loop whenever you like: the context stays as it is.
    """
    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    reply = begin(params, context, question, decoding, window=window)
    return _pieces(params, reply)


def _pieces(params: Params, reply: Reply) -> Iterator[str]:
    while not reply.finished:
        reply = step(params, reply)
        if reply.piece:
            yield reply.piece


def begin(
    params: Params,
    context: Context,
    question: str | Text,
    decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
    *,
    window: Window | None = None,
    keep: bool = False,
    copy: bool = True,
) -> Reply:
    """Read a question into a copy of the context's cache; ``step`` makes the answer.

    Args:
        decoding: how the answer will be made.
        keep: leave room for closing the turn.
        copy: False uses the context up, and saves the memory of a second cache.

    Raises:
        ValueError: see ``ask``.
    """
    began = time.perf_counter()
    check_context(params, context)
    reading = context.reading
    if window is not None:
        check_stream(context)
        check_windows(window, reading.spec)
    if not isinstance(question, Text):
        prompts.check_question(question)
        open_clip = window is not None or bool(context.past.in_video)
        medium = reading.medium if open_clip else None
        question = prompts.question(params.tokenizer, reading.config, question, medium)
    padded = padded_text(question.tokens, question.offsets)
    room = len(padded.tokens) + decoding.max_new_tokens + (_closing_room(params) if keep else 0)
    _check_room(context, len(question.tokens), room, decoding.max_new_tokens)

    context = fork(context) if copy else context
    if window is not None:
        context = advance(params, context, window, room=room)
    context = measured(make_room(context, room, room))
    context, logits = read_text(params, context, padded, context.past.after)
    jax.block_until_ready(logits)
    reply = begin_at(context, logits, question, decoding)
    seconds = {"prefill": time.perf_counter() - began, "generation": 0.0}
    return dataclasses.replace(reply, seconds=seconds)


def begin_at(
    context: Context, logits: Float[Array, " V"], question: Text, decoding: Decoding
) -> Reply:
    """The reply to a question that the context's cache has just read, with these logits."""
    generation = Generation(
        cache=context.cache,
        logits=logits,
        position=context.past.after + int(question.offsets[-1]) + 1,
        key=commit(jax.random.key(decoding.seed), logits),
        finished=commit(jnp.bool_(False), logits),
    )
    return Reply(
        context=context.replace(cache=None),
        generation=generation,
        question=len(question.tokens),
        begin=context.filled,
        ids=(),
        text="",
        piece="",
        finished=False,
        max_new_tokens=decoding.max_new_tokens,
        sampling=decoding.sampling,
        seconds={"prefill": 0.0, "generation": 0.0},
    )


def step(params: Params, reply: Reply, tokens: int = DECODE_BLOCK) -> Reply:
    """Make up to so many more tokens; the reply that is given in is used up.

    Args:
        tokens: at most ``DECODE_BLOCK``.
    """
    began = time.perf_counter()
    new, made, generation = generate_tokens(
        params.weights["text"],
        reply.generation,
        reply.sampling,
        limit(reply, tokens),
        config=reply.context.reading.config.text,
        steps=DECODE_BLOCK,
        end_tokens=end_tokens(params.tokenizer),
        kernels=reply.context.reading.kernels,
    )
    return continued(params, reply, generation, np.asarray(new)[: int(made)], began)


def limit(reply: Reply, tokens: int = DECODE_BLOCK) -> Int[Array, ""]:
    """How many of the next tokens are still wanted."""
    return jnp.int32(min(reply.max_new_tokens - len(reply.ids), tokens))


def continued(
    params: Params,
    reply: Reply,
    generation: Generation,
    made: Int[np.ndarray, " made"],
    began: float,
) -> Reply:
    """The reply with the tokens that its generation has just made.

    Args:
        began: when that began, by ``time.perf_counter``.
    """
    ids = (*reply.ids, *made.tolist())
    finished = bool(generation.finished) or len(ids) >= reply.max_new_tokens
    text = new_text(params.tokenizer, ids, reply.text, finished)
    took = reply.seconds["generation"] + time.perf_counter() - began
    return dataclasses.replace(
        reply,
        generation=generation,
        ids=ids,
        text=text,
        piece=text[len(reply.text) :],
        finished=finished,
        seconds=reply.seconds | {"generation": took},
    )


def check_callback(on_text: Any) -> None:
    """Raise ``ValueError`` unless it is None or can be called."""
    if on_text is not None and not callable(on_text):
        raise ValueError(f"on_text must be a function of a text, or None, got {on_text!r}")


def run(params: Params, reply: Reply, on_text: Callable[[str], None] | None = None) -> Reply:
    """Steps to the end; ``on_text`` gets every piece."""
    while not reply.finished:
        reply = step(params, reply)
        if on_text and reply.piece:
            on_text(reply.piece)
    return reply


def finish(params: Params, reply: Reply, *, keep: bool = False) -> tuple[Answer, Context | None]:
    """The answer so far, and with ``keep`` the context that remembers it."""
    past = reply.context.past
    (audio, video), (audio_kept, video_kept) = past.seen.tolist(), past.kept.tolist()
    answer = Answer(
        text=reply.text,
        token_ids=reply.ids,
        counts=TokenCounts(audio, audio_kept, video, video_kept, reply.question, len(reply.ids)),
        compression=None,
        clip=None,
        seconds=reply.seconds,
    )
    return answer, _remember(params, reply) if keep else None


def _remember(params: Params, reply: Reply) -> Context:
    """Close the assistant's turn, open the user's next one, and make both part of the history."""
    generation, closing = reply.generation, prompts.closing(params.tokenizer)
    if not bool(generation.finished):
        closing = np.insert(closing, 0, end_tokens(params.tokenizer)[0])
    text, context = padded_text(closing), reply.context.replace(cache=generation.cache)
    context, _ = read_text(params, context, text, generation.position)
    return remember_text(context, reply.begin, generation.position + text.count)


def _closing_room(params: Params) -> int:
    length = len(prompts.closing(params.tokenizer)) + 1
    return length + -length % TEXT_BLOCK


def _check_room(context: Context, question: int, text: int, max_new_tokens: int) -> None:
    """Where things are forgotten, a question may take no more than was set aside for it."""
    keeping = context.keeping
    if keeping.memory is None or text <= keeping.text_slots:
        return
    left = max(keeping.text_slots - (text - max_new_tokens), 0)
    raise ValueError(
        f"the question takes {question} tokens and leaves room for an answer of up to {left}, "
        f"max_new_tokens is {max_new_tokens}: shorten the question, or ask for fewer tokens"
    )
