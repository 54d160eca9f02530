"""Answers to questions about a context: begin, step, finish; and ``ask``, which does all three."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax.config import check_flags
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.inference.chat_template import Text
from omnizip_jax.inference.context import Context, check_context, commit, fork
from omnizip_jax.inference.decode import (
    DECODE_BLOCK,
    DecodeState,
    SamplingArrays,
    SamplingParams,
    end_tokens,
    generate_lanes,
    generate_tokens,
    new_text,
)
from omnizip_jax.inference.kv_cache import ensure_capacity, refresh_usage
from omnizip_jax.inference.prefill import read_text, remember_text
from omnizip_jax.inference.sequence import TEXT_BLOCK, padded_text
from omnizip_jax.inference.streaming import advance, check_stream
from omnizip_jax.media import Clip, check_windows
from omnizip_jax.models.params import Params
from omnizip_jax.types import Selection, Window


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """How many tokens the media had, how many the decoder read, how many it wrote."""

    audio: int
    audio_kept: int
    video: int
    video_kept: int
    text: int
    generated: int

    @property
    def media(self) -> int:
        return self.audio + self.video

    @property
    def kept(self) -> int:
        return self.audio_kept + self.video_kept

    @property
    def retained(self) -> float:
        """Share of the media tokens that the decoder read."""
        return self.kept / self.media if self.media else 1.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: prints as its text, and carries what led to it.

    Attributes:
        text: the answer.
        token_ids: its tokens, the end token included if it was made.
        counts: tokens by modality, before and after compression.
        compression: the trace, leading axis = windows: kept masks, retention, rates. None for a
            stream, and for a question without media.
        clip: the clip as it was read, with the pictures of a few windows to look at.
        seconds: wall time of "media", "encoders", "prefill" (compression included), "generation".
    """

    text: str
    token_ids: tuple[int, ...]
    counts: TokenCounts
    compression: Selection | None
    clip: Clip | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class GenerationState:
    """An answer in the making.

    Attributes:
        context: what was asked, without its cache, which went into the generation.
        decode_state: the loop's state.
        question: tokens of the question.
        begin: slot of the cache at which the question begins.
        ids: tokens made so far, the end token included.
        text: whole characters made so far; ``piece`` is what the last step added.
        finished: nothing more will come.
        max_new_tokens, sampling: as asked.
        seconds: wall time by stage so far.
    """

    context: Context
    decode_state: DecodeState
    question: int
    begin: int
    ids: tuple[int, ...]
    text: str
    piece: str
    finished: bool
    max_new_tokens: int
    sampling: SamplingArrays
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
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    generation = begin(params, context, question, sampling_params, window=window, keep=keep)
    generation = run(params, generation, on_text)
    answer, after = finish(params, generation, keep=keep)
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
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    generation = begin(params, context, question, sampling_params, window=window)
    return _pieces(params, generation)


def _pieces(params: Params, generation: GenerationState) -> Iterator[str]:
    while not generation.finished:
        generation = step(params, generation)
        if generation.piece:
            yield generation.piece


def begin(
    params: Params,
    context: Context,
    question: str | Text,
    sampling_params: SamplingParams = SamplingParams(),  # noqa: B008 (frozen)
    *,
    window: Window | None = None,
    keep: bool = False,
    copy: bool = True,
) -> GenerationState:
    """Read a question into a copy of the context's cache; ``step`` makes the answer.

    Args:
        sampling_params: how the answer will be made.
        keep: leave room for closing the turn.
        copy: False uses the context up, and saves the memory of a second cache.

    Raises:
        ValueError: see ``ask``.
    """
    began = time.perf_counter()
    check_context(params, context)
    prefill_config = context.prefill_config
    if window is not None:
        check_stream(context)
        check_windows(window, prefill_config.spec)
    if not isinstance(question, Text):
        prompts.check_question(question)
        open_clip = window is not None or bool(context.state.in_video)
        modalities = prefill_config.modalities if open_clip else None
        question = prompts.question(params.tokenizer, prefill_config.config, question, modalities)
    padded = padded_text(question.tokens, question.offsets)
    room = (
        len(padded.tokens) + sampling_params.max_new_tokens + (_closing_room(params) if keep else 0)
    )
    _check_room(context, len(question.tokens), room, sampling_params.max_new_tokens)

    context = fork(context) if copy else context
    if window is not None:
        context = advance(params, context, window, room=room)
    context = refresh_usage(ensure_capacity(context, room, room))
    context, logits = read_text(params, context, padded, context.state.after)
    jax.block_until_ready(logits)
    generation = begin_at(context, logits, question, sampling_params)
    seconds = {"prefill": time.perf_counter() - began, "generation": 0.0}
    return dataclasses.replace(generation, seconds=seconds)


def begin_at(
    context: Context, logits: Float[Array, " V"], question: Text, sampling_params: SamplingParams
) -> GenerationState:
    """The reply to a question that the context's cache has just read, with these logits."""
    decode_state = DecodeState(
        cache=context.cache,
        logits=logits,
        position=context.state.after + int(question.offsets[-1]) + 1,
        key=commit(jax.random.key(sampling_params.seed), logits),
        finished=commit(jnp.bool_(False), logits),
    )
    return GenerationState(
        context=context.replace(cache=None),
        decode_state=decode_state,
        question=len(question.tokens),
        begin=context.used_slots,
        ids=(),
        text="",
        piece="",
        finished=False,
        max_new_tokens=sampling_params.max_new_tokens,
        sampling=sampling_params.sampling,
        seconds={"prefill": 0.0, "generation": 0.0},
    )


def step(
    params: Params, generation: GenerationState, tokens: int = DECODE_BLOCK
) -> GenerationState:
    """Make up to so many more tokens; the reply that is given in is used up.

    Args:
        tokens: at most ``DECODE_BLOCK``.
    """
    began = time.perf_counter()
    new, made, decode_state = generate_tokens(
        params.weights["text"],
        generation.decode_state,
        generation.sampling,
        limit(generation, tokens),
        config=generation.context.prefill_config.config.text,
        steps=DECODE_BLOCK,
        end_tokens=end_tokens(params.tokenizer),
        backend=generation.context.prefill_config.backend,
    )
    return continued(params, generation, decode_state, np.asarray(new)[: int(made)], began)


def limit(generation: GenerationState, tokens: int = DECODE_BLOCK) -> Int[Array, ""]:
    """How many of the next tokens are still wanted."""
    return jnp.int32(min(generation.max_new_tokens - len(generation.ids), tokens))


def continued(
    params: Params,
    generation: GenerationState,
    decode_state: DecodeState,
    made: Int[np.ndarray, " made"],
    began: float,
) -> GenerationState:
    """The reply with the tokens that its generation has just made.

    Args:
        began: when that began, by ``time.perf_counter``.
    """
    ids = (*generation.ids, *made.tolist())
    finished = bool(decode_state.finished) or len(ids) >= generation.max_new_tokens
    text = new_text(params.tokenizer, ids, generation.text, finished)
    took = generation.seconds["generation"] + time.perf_counter() - began
    return dataclasses.replace(
        generation,
        decode_state=decode_state,
        ids=ids,
        text=text,
        piece=text[len(generation.text) :],
        finished=finished,
        seconds=generation.seconds | {"generation": took},
    )


def check_callback(on_text: Any) -> None:
    """Raise ``ValueError`` unless it is None or can be called."""
    if on_text is not None and not callable(on_text):
        raise ValueError(f"on_text must be a function of a text, or None, got {on_text!r}")


def run(
    params: Params, generation: GenerationState, on_text: Callable[[str], None] | None = None
) -> GenerationState:
    """Steps to the end; ``on_text`` gets every piece."""
    while not generation.finished:
        generation = step(params, generation)
        if on_text and generation.piece:
            on_text(generation.piece)
    return generation


def finish(
    params: Params, generation: GenerationState, *, keep: bool = False
) -> tuple[Answer, Context | None]:
    """The answer so far, and with ``keep`` the context that remembers it."""
    state = generation.context.state
    (audio, video), (audio_kept, video_kept) = state.seen.tolist(), state.kept.tolist()
    answer = Answer(
        text=generation.text,
        token_ids=generation.ids,
        counts=TokenCounts(
            audio, audio_kept, video, video_kept, generation.question, len(generation.ids)
        ),
        compression=None,
        clip=None,
        seconds=generation.seconds,
    )
    return answer, _remember(params, generation) if keep else None


def _remember(params: Params, generation: GenerationState) -> Context:
    """Close the assistant's turn, open the user's next one, and make both part of the history."""
    decode_state, closing = generation.decode_state, prompts.closing(params.tokenizer)
    if not bool(decode_state.finished):
        closing = np.insert(closing, 0, end_tokens(params.tokenizer)[0])
    text, context = padded_text(closing), generation.context.replace(cache=decode_state.cache)
    context, _ = read_text(params, context, text, decode_state.position)
    return remember_text(context, generation.begin, decode_state.position + text.count)


def _closing_room(params: Params) -> int:
    length = len(prompts.closing(params.tokenizer)) + 1
    return length + -length % TEXT_BLOCK


def _check_room(context: Context, question: int, text: int, max_new_tokens: int) -> None:
    """Where things are forgotten, a question may take no more than was set aside for it."""
    retention = context.retention
    if retention.memory is None or text <= retention.text_slots:
        return
    left = max(retention.text_slots - (text - max_new_tokens), 0)
    raise ValueError(
        f"the question takes {question} tokens and leaves room for an answer of up to {left}, "
        f"max_new_tokens is {max_new_tokens}: shorten the question, or ask for fewer tokens"
    )


LANES = (8, 4, 2)  # of the programs that there are


def kind(generation: GenerationState) -> Hashable:
    """Equal for answers that one program can make: their caches have the same shapes."""
    prefill_config, cache = generation.context.prefill_config, generation.decode_state.cache
    leaves, structure = jax.tree.flatten(cache)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return prefill_config.config, prefill_config.backend, structure, shapes


def together(kinds: Sequence[Hashable]) -> list[int]:
    """Who goes with the first of those that wait: it, and the next ones of its kind.

    As many as the largest program that they fill; so nobody waits for a lane to be taken.
    """
    same = [number for number, other in enumerate(kinds) if other == kinds[0]]
    return same[: next((lanes for lanes in LANES if lanes <= len(same)), 1)]


def step_lanes(
    params: Params, replies: Sequence[GenerationState], tokens: int = DECODE_BLOCK
) -> list[GenerationState]:
    """Make up to so many more tokens of every reply, in as few programs as their kinds allow.

    The tokens are those of ``step`` one by one, but for rounding. The states that are given in are
    used up; finished ones are returned as they are.

    Args:
        tokens: at most ``DECODE_BLOCK``.
    """
    done = list(replies)
    waiting = [number for number, generation in enumerate(replies) if not generation.finished]
    while waiting:
        kinds = [kind(replies[number]) for number in waiting]
        lanes = [waiting[place] for place in together(kinds)]
        stepped = _side_by_side(params, [replies[number] for number in lanes], tokens)
        for number, generation in zip(lanes, stepped, strict=True):
            done[number] = generation
        waiting = [number for number in waiting if number not in lanes]
    return done


def _side_by_side(
    params: Params, replies: list[GenerationState], tokens: int
) -> list[GenerationState]:
    """One step of replies of one kind."""
    if len(replies) == 1:
        return [step(params, replies[0], tokens)]
    began, prefill_config = time.perf_counter(), replies[0].context.prefill_config
    new, made, generations = generate_lanes(
        params.weights["text"],
        [generation.decode_state for generation in replies],
        [generation.sampling for generation in replies],
        [limit(generation, tokens) for generation in replies],
        config=prefill_config.config.text,
        steps=DECODE_BLOCK,
        end_tokens=end_tokens(params.tokenizer),
        backend=prefill_config.backend,
    )
    return [
        continued(params, generation, decode_state, ids[:count], began)
        for generation, decode_state, ids, count in zip(
            replies, generations, np.asarray(new), np.asarray(made), strict=True
        )
    ]
