"""Questions about whole clips: ``generate`` is ``read`` and ``ask``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from omnizip_jax import prompt as prompts
from omnizip_jax.answer import Answer
from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.config import WindowSpec
from omnizip_jax.context import Context
from omnizip_jax.decode import Decoding, check_count, check_seed
from omnizip_jax.media import Clip
from omnizip_jax.models.params import Params, check_params
from omnizip_jax.reader import read_turn, timed
from omnizip_jax.reply import Reply, begin, begin_at, check_callback, finish, run
from omnizip_jax.staged import read_with_question
from omnizip_jax.turn import Loading, Turn, check_positions, load_turn
from omnizip_jax.types import EncodedWindow


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
    parts = [question] if video is None else [{"video": video}, question]
    loading = Loading(system, use_audio, use_video, max_frames, spec, progress)
    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    return _answer(params, parts, as_method(compression), loading, decoding, on_text)


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
    loading = Loading(system, use_audio, use_video, max_frames, spec, progress)
    decoding = Decoding(max_new_tokens, temperature, top_p, seed)
    return _answer(params, parts, as_method(compression), loading, decoding, on_text)


def _answer(
    params: Params,
    parts: Sequence[Any],
    method: Method,
    loading: Loading,
    decoding: Decoding,
    on_text: Callable[[str], None] | None,
) -> Answer:
    check_params(params)
    check_callback(on_text)
    seconds: dict[str, float] = {}
    with timed(seconds, "media"):
        turn = load_turn(params, parts, loading)
    check_positions(turn, decoding.max_new_tokens, params.config)
    question, room = turn.question, decoding.max_new_tokens
    drawn, progress = decoding.seed, loading.progress
    if method.stages(params.config.text.layers) and turn.clips:
        context, logits, took = read_with_question(params, turn, method, room, drawn, progress)
        reply = begin_at(context, logits, question, decoding)
    else:
        context, took = read_turn(params, turn, method, turn.room(room), drawn, progress)
        reply = begin(params, context, question, decoding, copy=False)
    clip, text = turn.shown, turn.read_before(params.config)
    del context, turn  # the first cache and the pixels are not needed to decode
    answer = _completed(params, run(params, reply, on_text), text, seconds | took)
    return dataclasses.replace(answer, clip=clip)


def answer_encoded(
    params: Params,
    clip: Clip,
    encoded: EncodedWindow,
    question: str,
    method: Method,
    *,
    max_new_tokens: int = 256,
    system: str = prompts.DEFAULT_SYSTEM,
    seed: int = 0,
) -> Answer:
    """``generate`` for a method with stages and a clip that is encoded already, greedily.

    Other methods read the clip once for all questions: ``read_encoded``, then ``ask``.
    """
    turn = Turn.of(params, [clip, question], system)
    check_positions(turn, max_new_tokens, params.config)
    context, logits, took = read_with_question(
        params, turn, method, max_new_tokens, seed, encoded=encoded
    )
    reply = begin_at(context, logits, turn.question, Decoding(max_new_tokens, 0.0, 1.0, seed))
    return _completed(params, run(params, reply), turn.read_before(params.config), took)


def _completed(params: Params, reply: Reply, text: int, took: dict[str, float]) -> Answer:
    """The answer, with what was read before its question: tokens of text, and seconds."""
    answer, _ = finish(params, reply)
    prefill = took["prefill"] + answer.seconds["prefill"]
    return dataclasses.replace(
        answer,
        counts=dataclasses.replace(answer.counts, text=text + answer.counts.text),
        compression=reply.context.trace,
        seconds=took | answer.seconds | {"prefill": prefill},
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
    method = as_method(compression)
    if method.stages(params.config.text.layers):
        raise ValueError(
            f"{type(method).__name__} reads a clip with the eyes of its question: use generate"
        )
    if parts and isinstance(parts[-1], str):
        raise ValueError("what is read ends with a clip: give the last text to ask")
    loading = Loading(system, use_audio, use_video, max_frames, spec, progress)
    turn = load_turn(params, [*parts, "?"], loading)
    check_positions(turn, room, params.config)
    return read_turn(params, turn, method, room, seed, progress)[0]
