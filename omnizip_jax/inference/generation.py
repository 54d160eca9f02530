"""Answers to questions about a context: ``begin``, ``step``, ``finish``; ``ask`` does all three.

Several answers are generated as a batch::

    states = [begin(params, context, question) for context, question in requests]
    while not all(state.finished for state in states):
        states = step_batch(params, states)

A sequence is part of a batch for one step at a time. Its cache stays where it is, so joining and
leaving a batch copy nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from omnizip_jax.inference import chat_template
from omnizip_jax.inference.chat_template import Text
from omnizip_jax.inference.context import Context, check_context, commit, fork
from omnizip_jax.inference.decode import (
    DECODE_BLOCK,
    DecodeState,
    SamplingParams,
    generate_tokens,
    new_text,
)
from omnizip_jax.inference.kv_cache_capacity import ensure_capacity, refresh_usage
from omnizip_jax.inference.prefill import prefill_text, record_text
from omnizip_jax.inference.sequence import pad_text
from omnizip_jax.inference.streaming import advance, check_stream
from omnizip_jax.media import Clip, check_windows
from omnizip_jax.models.backend import jax_defaults
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.types import Selection, Window
from omnizip_jax.window_spec import check_flags

BATCH_SIZES = (8, 4, 2, 1)  # of the programs that generate tokens


@dataclasses.dataclass(frozen=True)
class MediaCounts:
    """Number of audio and video tokens, before and after compression."""

    audio: int
    audio_kept: int
    video: int
    video_kept: int

    @property
    def media(self) -> int:
        return self.audio + self.video

    @property
    def kept(self) -> int:
        return self.audio_kept + self.video_kept

    @property
    def missing(self) -> tuple[str, ...]:
        """Modalities of which the media have no token: "audio", "video"."""
        found = {"audio": self.audio, "video": self.video}
        return tuple(name for name, count in found.items() if self.media and not count)

    @property
    def retained(self) -> float:
        """Share of the media tokens that the decoder read."""
        return self.kept / self.media if self.media else 1.0


@dataclasses.dataclass(frozen=True)
class TokenCounts(MediaCounts):
    """Number of tokens by modality, before and after compression, of text, and generated."""

    text: int
    generated: int


def media_counts(seen: Int[np.ndarray, " 2"], kept: Int[np.ndarray, " 2"]) -> dict[str, int]:
    """Fields of ``MediaCounts`` from audio and video tokens before and after compression."""
    names = (field.name for field in dataclasses.fields(MediaCounts))
    return dict(zip(names, np.stack([seen, kept], axis=1).ravel().tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer with its token counts, selection and times; prints as its text.

    Attributes:
        text: the answer.
        token_ids: its tokens, the end token included if it was generated.
        counts: tokens by modality, before and after compression.
        compression: the trace, leading axis = windows: kept masks, retention, rates. None for a
            stream, and for a question without media.
        clip: the clip as it was read, with the frames of a few windows.
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
    """An answer that is being generated.

    Attributes:
        context: the context without its cache, which is part of ``decode_state``.
        question: number of tokens of the question.
        begin: slot of the cache at which the question begins.
        seconds: wall time by stage so far.
        ids: tokens generated so far, the end token included.
        text: whole characters generated so far; ``piece`` is what the last step added.
        finished: no more tokens will be generated.
    """

    context: Context
    decode_state: DecodeState
    question: int
    begin: int
    sampling_params: SamplingParams
    seconds: dict[str, float]
    ids: tuple[int, ...] = ()
    text: str = ""
    piece: str = ""
    finished: bool = False


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
    """Ask a question about a context: a clip, or what a stream retains.

    The context that is passed in remains valid: the answer is generated on a copy of its cache,
    which is freed unless ``keep``.

    Args:
        question: the user's text.
        keep: append question and answer to the context that is returned, so that later questions
            can refer to them.
        window: a window of a stream that is only partly filled. It is part of the input of this
            answer (and, with ``keep``, of the context that is returned).
        max_new_tokens, temperature, top_p, seed, on_text: as for ``generate``.

    Returns:
        The answer, and the context to continue from.

    Raises:
        ValueError: a question that does not fit, an invalid setting or window, other parameters.
    """
    check_flags(keep=keep)
    check_callback(on_text)
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    state = begin(params, context, question, sampling_params, window=window, keep=keep)
    answer, after = finish(params, run(params, state, on_text), keep=keep)
    return answer, context if after is None else after


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
    """Yield the pieces of an answer's text as they are generated.

    Arguments and errors are those of ``ask``. The context remains valid, also if the iterator is
    not exhausted.
    """
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    state = begin(params, context, question, sampling_params, window=window)
    return (state.piece for state in _steps(params, state) if state.piece)


@jax_defaults()
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
    """Prefill a question into a copy of the context's cache; ``step`` generates the answer.

    Args:
        keep: reserve capacity to close the turn.
        copy: False donates the context's cache, and saves the memory of a second one.

    Raises:
        ValueError: see ``ask``.
    """
    began = time.perf_counter()
    check_context(params, context)
    config = context.prefill_config
    if window is not None:
        check_stream(context)
        check_windows(window, config.spec)
    if not isinstance(question, Text):
        chat_template.check_question(question)
        question = _question(params, context, question, window is not None)
    evicts = context.retention.memory is not None
    slots = context.retention.text_slots if evicts else None
    closing = len(chat_template.closing(params.tokenizer)) if keep else 0
    needed = len(question.tokens) + sampling_params.max_new_tokens + closing
    if slots is not None and needed > slots:
        left = max(slots - closing - len(question.tokens), 0)
        raise ValueError(
            f"the question takes {len(question.tokens)} tokens and leaves room for an answer of up "
            f"to {left}, max_new_tokens is {sampling_params.max_new_tokens}: shorten the question, "
            "or ask for fewer tokens"
        )
    text = pad_text(question.tokens, question.offsets, limit=slots)
    needed = max(needed, len(text.tokens))

    context = fork(context) if copy else context
    if window is not None:
        context = advance(params, context, window, reserve=needed)
    context = refresh_usage(ensure_capacity(context, needed, needed))
    context, logits = prefill_text(params, context, text, context.state.after)
    jax.block_until_ready(logits)
    state = begin_from_logits(context, logits, question, sampling_params)
    seconds = {"prefill": time.perf_counter() - began, "generation": 0.0}
    return dataclasses.replace(state, seconds=seconds)


@jax_defaults()
def begin_from_logits(
    context: Context, logits: Float[Array, " V"], question: Text, sampling_params: SamplingParams
) -> GenerationState:
    """Begin the answer to a question that is in the cache already, with the logits after it."""
    decode_state = DecodeState(
        cache=context.cache,
        logits=logits,
        position=context.state.after + int(question.offsets[-1]) + 1,
        key=commit(jax.random.key(sampling_params.seed), logits),
        finished=commit(jnp.bool_(False), logits),
    )
    return GenerationState(
        context.replace(cache=None),
        decode_state,
        question=len(question.tokens),
        begin=context.used_slots,
        sampling_params=sampling_params,
        seconds={"prefill": 0.0, "generation": 0.0},
    )


def step(params: Params, state: GenerationState, tokens: int = DECODE_BLOCK) -> GenerationState:
    """Generate up to ``tokens`` more tokens, at most ``DECODE_BLOCK``; the cache is donated."""
    return _step_group(params, [state], tokens)[0]


def step_batch(
    params: Params, states: Sequence[GenerationState], tokens: int = DECODE_BLOCK
) -> list[GenerationState]:
    """``step`` for every state, in as few programs as their cache shapes allow.

    The tokens equal those of ``step`` up to rounding. The caches are donated; finished states are
    returned as they are.
    """
    done = list(states)
    pending = [number for number, state in enumerate(states) if not state.finished]
    while pending:
        keys = [batch_key(states[number]) for number in pending]
        group = [pending[place] for place in next_batch(keys)]
        stepped = _step_group(params, [states[number] for number in group], tokens)
        for number, state in zip(group, stepped, strict=True):
            done[number] = state
        pending = [number for number in pending if number not in group]
    return done


def batch_key(state: GenerationState) -> Hashable:
    """Equal for states that one program can step: their caches have the same shapes."""
    config, cache = state.context.prefill_config, state.decode_state.cache
    leaves, structure = jax.tree.flatten(cache)
    return config.config, config.backend, structure, tuple((x.shape, x.dtype) for x in leaves)


def next_batch(keys: Sequence[Hashable]) -> list[int]:
    """Indices of the next batch: the first pending state, and the next ones with an equal key.

    The batch is the largest program size that they fill, so that no state waits for others.
    """
    same = [number for number, other in enumerate(keys) if other == keys[0]]
    return same[: next(size for size in BATCH_SIZES if size <= len(same))]


@jax_defaults()
def _step_group(
    params: Params, states: Sequence[GenerationState], tokens: int
) -> list[GenerationState]:
    """One step of states with equal keys."""
    began, config = time.perf_counter(), states[0].context.prefill_config
    limits = [min(s.sampling_params.max_new_tokens - len(s.ids), tokens) for s in states]
    made, counts, decode_states = generate_tokens(
        params.weights["text"],
        [state.decode_state for state in states],
        [state.sampling_params.sampling for state in states],
        [jnp.int32(limit) for limit in limits],
        config=config.config.text,
        steps=DECODE_BLOCK,
        end_tokens=params.end_tokens,
        dtype=config.dtype,
        backend=config.backend,
    )
    stepped = []
    for state, decode_state, row, count in zip(
        states, decode_states, np.asarray(made), np.asarray(counts), strict=True
    ):
        ids = (*state.ids, *row[:count].tolist())
        ended = bool(decode_state.finished)
        finished = ended or len(ids) >= state.sampling_params.max_new_tokens
        shown = ids[:-1] if ended else ids  # an end token need not be a special one
        text = new_text(params.tokenizer, shown, state.text, finished)
        took = state.seconds["generation"] + time.perf_counter() - began
        stepped.append(
            dataclasses.replace(
                state,
                decode_state=decode_state,
                ids=ids,
                text=text,
                piece=text[len(state.text) :],
                finished=finished,
                seconds=state.seconds | {"generation": took},
            )
        )
    return stepped


def check_callback(on_text: Any) -> None:
    """Raise ``ValueError`` unless ``on_text`` is None or callable."""
    if on_text is not None and not callable(on_text):
        raise ValueError(f"on_text must be a function of a text, or None, got {on_text!r}")


def run(
    params: Params, state: GenerationState, on_text: Callable[[str], None] | None = None
) -> GenerationState:
    """Step until the answer is finished; ``on_text`` is called with every piece."""
    last = state
    for last in _steps(params, state):
        if on_text and last.piece:
            on_text(last.piece)
    return last


def _steps(params: Params, state: GenerationState) -> Iterator[GenerationState]:
    while not state.finished:
        state = step(params, state)
        yield state


@jax_defaults()
def finish(
    params: Params, state: GenerationState, *, keep: bool = False
) -> tuple[Answer, Context | None]:
    """The answer so far; with ``keep`` also the context with question and answer appended."""
    stream = state.context.state
    media = media_counts(np.asarray(stream.seen), np.asarray(stream.kept))
    counts = TokenCounts(**media, text=state.question, generated=len(state.ids))
    answer = Answer(state.text, state.ids, counts, None, None, state.seconds)
    if not keep:
        return answer, None
    # Close the assistant's turn, open the user's next one, and record both in the context.
    decode_state = state.decode_state
    closing = chat_template.closing(params.tokenizer)[bool(decode_state.finished) :]
    context = state.context.replace(cache=decode_state.cache)
    used = state.begin + state.question + len(state.ids)
    if used + len(closing) > context.capacity:
        raise ValueError(
            f"{context.capacity - used} slots of the cache are free, and the end of the turn takes "
            f"{len(closing)}: call begin with keep=True, which reserves them"
        )
    text = pad_text(closing, limit=context.capacity - used)
    context, _ = prefill_text(params, context, text, decode_state.position)
    return answer, record_text(context, state.begin, decode_state.position + text.count)


def append_exchange(params: Params, context: Context, question: str, answer: str) -> Context:
    """Append a question and its answer as given texts; the cache of ``context`` is donated."""
    asked = _question(params, context, question)
    words = params.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)
    rest = np.array([*words["input_ids"], *chat_template.closing(params.tokenizer)], np.int32)
    offsets = int(asked.offsets[-1]) + 1 + np.arange(len(rest), dtype=np.int32)
    tokens = np.concatenate([asked.tokens, rest])
    evicts = context.retention.memory is not None
    limit = max(context.retention.text_slots, len(tokens)) if evicts else None
    text = pad_text(tokens, np.concatenate([asked.offsets, offsets]), limit=limit)
    context = refresh_usage(ensure_capacity(context, len(text.tokens), len(text.tokens)))
    start, place = context.state.after, context.used_slots
    context, _ = prefill_text(params, context, text, start)
    return record_text(context, place, start + int(offsets[-1]) + 1)


def _question(params: Params, context: Context, question: str, in_video: bool = False) -> Text:
    """Tokens of a question, which closes the video before it unless a text has done so."""
    config = context.prefill_config
    modalities = config.modalities if in_video or bool(context.state.in_video) else None
    return chat_template.question(params.tokenizer, config.config, question, modalities)
