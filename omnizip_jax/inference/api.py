"""Questions about whole clips: ``generate`` is ``read`` and ``ask``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.config import WindowSpec
from omnizip_jax.inference import chat_template as prompts
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.decode import SamplingParams, check_count, check_seed
from omnizip_jax.inference.generation import (
    Answer,
    GenerationState,
    begin,
    begin_at,
    check_callback,
    finish,
    run,
    step,
)
from omnizip_jax.inference.inputs import MediaOptions, UserTurn, check_positions, load_turn
from omnizip_jax.inference.prefill import read_turn, read_with_question, timed
from omnizip_jax.media import Clip
from omnizip_jax.media.pixels import fit_grid
from omnizip_jax.models.params import Params, check_params
from omnizip_jax.types import EncodedWindow, Window


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
    media_options = MediaOptions(system, use_audio, use_video, max_frames, spec, progress)
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    return _answer(params, parts, as_method(compression), media_options, sampling_params, on_text)


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
    media_options = MediaOptions(system, use_audio, use_video, max_frames, spec, progress)
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    return _answer(params, parts, as_method(compression), media_options, sampling_params, on_text)


def _answer(
    params: Params,
    parts: Sequence[Any],
    method: Method,
    media_options: MediaOptions,
    sampling_params: SamplingParams,
    on_text: Callable[[str], None] | None,
) -> Answer:
    check_params(params)
    check_callback(on_text)
    seconds: dict[str, float] = {}
    with timed(seconds, "media"):
        turn = load_turn(params, parts, media_options)
    check_positions(turn, sampling_params.max_new_tokens, params.config)
    question, room = turn.question, sampling_params.max_new_tokens
    drawn, progress = sampling_params.seed, media_options.progress
    if method.stages(params.config.text.layers) and turn.clips:
        context, logits, took = read_with_question(params, turn, method, room, drawn, progress)
        generation = begin_at(context, logits, question, sampling_params)
    else:
        context, took = read_turn(params, turn, method, turn.room(room), drawn, progress)
        generation = begin(params, context, question, sampling_params, copy=False)
    clip, text = turn.shown, turn.read_before(params.config)
    del context, turn  # the first cache and the pixels are not needed to decode
    answer = _completed(params, run(params, generation, on_text), text, seconds | took)
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
    turn = UserTurn.of(params, [clip, question], system)
    check_positions(turn, max_new_tokens, params.config)
    context, logits, took = read_with_question(
        params, turn, method, max_new_tokens, seed, encoded=encoded
    )
    generation = begin_at(
        context, logits, turn.question, SamplingParams(max_new_tokens, 0.0, 1.0, seed)
    )
    return _completed(params, run(params, generation), turn.read_before(params.config), took)


def _completed(
    params: Params, generation: GenerationState, text: int, took: dict[str, float]
) -> Answer:
    """The answer, with what was read before its question: tokens of text, and seconds."""
    answer, _ = finish(params, generation)
    prefill = took["prefill"] + answer.seconds["prefill"]
    return dataclasses.replace(
        answer,
        counts=dataclasses.replace(answer.counts, text=text + answer.counts.text),
        compression=generation.context.trace,
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
    media_options = MediaOptions(system, use_audio, use_video, max_frames, spec, progress)
    turn = load_turn(params, [*parts, "?"], media_options)
    check_positions(turn, room, params.config)
    return read_turn(params, turn, method, room, seed, progress)[0]


def warmup(
    params: Params,
    seconds: float | Sequence[float],
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    size: tuple[int, int] = (1280, 720),
    audio: bool = True,
    system: str = prompts.DEFAULT_SYSTEM,
    spec: WindowSpec | None = None,
) -> dict[str, float]:
    """Compile the programs for clips of some lengths, by running them on noise.

    Clips share programs through length buckets, so a few lengths serve many. With JAX's
    persistent compilation cache (the command line turns it on) a second process starts faster.

    Args:
        params: from ``omnizip_jax.load``.
        seconds: one or several lengths of clips.
        compression, max_new_tokens, system, spec: as ``generate`` will get them.
        size: width and height of the pictures.
        audio: whether the clips have sound.

    Returns:
        Wall seconds of each first run, by program and length; where a program was there already
        (of an equal bucket, or from the persistent cache) they are few.
    """
    report = {}
    lengths = [seconds] if isinstance(seconds, (int, float)) else seconds
    spec, method = params.config.spec if spec is None else spec, as_method(compression)
    for length in lengths:
        clip = _noise(length, size, audio, spec)
        turn = UserTurn.of(params, [clip, "What happens?"], system)
        context, took = read_turn(params, turn, method, turn.room(max_new_tokens))
        report[f"encoders, {length:g} s"] = took["encoders"]
        report[f"compression and prefill, {length:g} s"] = took["prefill"]
        began = time.perf_counter()
        sampling_params = SamplingParams(max_new_tokens)
        step(params, begin(params, context, turn.question, sampling_params, copy=False))
        report[f"generation, {length:g} s"] = time.perf_counter() - began
    return report


def _noise(seconds: float, size: tuple[int, int], audio: bool, spec: WindowSpec) -> Clip:
    """A clip of random pixels and mel, all its windows full."""
    rng = np.random.default_rng(0)
    empty = Window.empty(spec, max(1, -(-int(np.ceil(seconds)) // spec.seconds)))
    cells = np.array(fit_grid(size[1], size[0], spec.grid_slots), np.int32)
    leaves: dict[str, Any] = {  # numpy on the host, where the annotations say Array
        "patches": rng.integers(0, 256, empty.patches.shape, dtype=np.uint8),
        "grid_size": empty.grid_size * cells,
        "grid_mask": ~empty.grid_mask,
        "mel": rng.standard_normal(empty.mel.shape, dtype=np.float32),
        "mel_length": empty.mel_length + spec.mel_frames * audio,
    }
    windows = empty.replace(**leaves)
    return Clip(windows, float(seconds), spec.seconds / spec.grids, True, audio, spec)
