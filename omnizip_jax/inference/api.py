"""Questions about whole clips: ``generate``, ``converse``, ``read``; ``warmup`` compiles ahead."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.compression.decoder_stages import check_stages
from omnizip_jax.inference.chat_template import Text, check_question
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.decode import SamplingParams, check_count, check_seed
from omnizip_jax.inference.generation import (
    Answer,
    GenerationState,
    begin,
    begin_from_logits,
    check_callback,
    finish,
    run,
    step,
)
from omnizip_jax.inference.inputs import MediaOptions, UserTurn, check_positions, load_turn
from omnizip_jax.inference.prefill import prefill_turn, timed
from omnizip_jax.inference.sequence import TEXT_BUCKETS
from omnizip_jax.media import Clip
from omnizip_jax.media.pixels import fit_grid
from omnizip_jax.models.loaded_model import Params, check_params
from omnizip_jax.models.registry import family
from omnizip_jax.types import EncodedWindow, Window
from omnizip_jax.window_spec import WindowSpec, check_flags


def generate(
    params: Params,
    video: Any,
    question: str,
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    system: str | None = None,
    use_audio: bool = True,
    use_video: bool = True,
    max_frames: int | None = None,
    spec: WindowSpec | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    progress: bool = False,
    audio_stream: int | None = None,
    video_stream: int | None = None,
) -> Answer:
    """Answer a question about a video with audio.

    Args:
        params: from ``omnizip_jax.load``.
        video: a path, a URL, ``(frames uint8 [T, H, W, 3], fps, waveform float32 [S], sample
            rate)`` with None for a missing waveform, or a ``Clip``. None asks the language model
            alone.
        question: the user's text.
        compression: the method; None keeps all tokens.
        max_new_tokens: the most tokens that are generated.
        system: the system prompt; None: the model's default, "" none.
        use_audio, use_video: False leaves that modality out.
        max_frames: the most frames of a long clip, sampled uniformly. None: 2 a second.
        spec: the shape of a window; more ``grid_slots`` keep larger frames. The checkpoint's own
            by default.
        temperature: 0 is greedy.
        top_p: nucleus sampling: sample from the most probable tokens that hold this mass.
        seed: of the sampling, and of methods that sample randomly.
        on_text: called with every new piece of text.
        progress: show progress bars for long clips.
        audio_stream, video_stream: which stream of a file with several of a kind, numbered from
            0; None takes the one that FFmpeg prefers, and warns.

    Raises:
        ValueError: an unreadable video, an empty question, a setting out of range, or a prompt
            that is longer than the model's positions.
    """
    check_question(question)
    parts = [question] if video is None else [{"video": video}, question]
    media = MediaOptions(
        system=system,
        use_audio=use_audio,
        use_video=use_video,
        max_frames=max_frames,
        spec=spec,
        progress=progress,
        audio_stream=audio_stream,
        video_stream=video_stream,
    )
    sampling_params = SamplingParams(max_new_tokens, temperature, top_p, seed)
    return _answer(params, parts, compression, media, sampling_params, on_text)


def converse(
    params: Params,
    parts: Sequence[Any],
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> Answer:
    """Answer a turn of several clips and texts, in any order; the last part is a text.

    Args:
        parts: texts, and clips as ``{"video": source}``; a ``Path``, a tuple of arrays and a
            ``Clip`` need no mapping. Each clip is compressed separately.
        options: the other arguments of ``generate``, which also lists the errors.
    """
    options["max_new_tokens"] = max_new_tokens
    media, sampling_params = _from_options("converse", options, MediaOptions, SamplingParams)
    return _answer(params, parts, compression, media, sampling_params, on_text)


def _from_options(function: str, options: dict[str, Any], *kinds: type) -> list[Any]:
    """An object of each dataclass from the keyword arguments of a public function.

    Raises:
        TypeError: no dataclass has a field of that name.
    """
    fields = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    for name in options.keys() - set().union(*fields):
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return [
        kind(**{name: options[name] for name in names & options.keys()})
        for kind, names in zip(kinds, fields, strict=True)
    ]


def _answer(
    params: Params,
    parts: Sequence[Any],
    compression: Method | None,
    media: MediaOptions,
    sampling_params: SamplingParams,
    on_text: Callable[[str], None] | None = None,
    encoded: Sequence[EncodedWindow] | None = None,
) -> Answer:
    method = _offline_method(params, compression)
    check_callback(on_text)
    seconds: dict[str, float] = {}
    with timed(seconds, "media"):
        turn = load_turn(params, parts, media)
    check_positions(turn, sampling_params.max_new_tokens, params.config)
    shown, text = turn.shown, turn.text_before(params.config)
    state, took = begin_turn(
        params, turn, method, sampling_params, progress=media.progress, encoded=encoded
    )
    del turn  # the pixels are not needed to decode
    state = run(params, state, on_text)
    answer, _ = finish(params, state)
    prefill = took["prefill"] + answer.seconds["prefill"]
    return dataclasses.replace(
        answer,
        counts=dataclasses.replace(answer.counts, text=text + answer.counts.text),
        compression=state.context.trace,
        clip=shown,
        seconds=seconds | took | answer.seconds | {"prefill": prefill},
    )


def _offline_method(params: Params, compression: Method | None) -> Method:
    """The method; raises ``ValueError`` unless its stages fit the decoder."""
    check_params(params)
    method, layers = as_method(compression), params.config.text.layers
    check_stages(method.stages(layers), layers)
    return method


def begin_turn(
    params: Params,
    turn: UserTurn,
    method: Method,
    sampling_params: SamplingParams,
    *,
    progress: bool = False,
    encoded: Sequence[EncodedWindow] | None = None,
) -> tuple[GenerationState, dict[str, float]]:
    """Prefill a turn with its question; ``step`` generates the answer.

    Args:
        progress, encoded: see ``prefill_turn``.

    Returns:
        The state, and the wall seconds of "encoders" and "prefill".
    """
    reserve, question = sampling_params.max_new_tokens, turn.question
    context, logits, seconds = prefill_turn(
        params,
        turn,
        method,
        reserve,
        question=bool(turn.clips),
        seed=sampling_params.seed,
        progress=progress,
        encoded=encoded,
    )
    if logits is None:
        return begin(params, context, question, sampling_params, copy=False), seconds
    return begin_from_logits(context, logits, question, sampling_params), seconds


def answer_encoded(
    params: Params,
    clip: Clip,
    encoded: EncodedWindow,
    question: str,
    method: Method,
    *,
    max_new_tokens: int = 256,
    system: str | None = None,
    seed: int = 0,
) -> Answer:
    """``generate`` for a clip that is encoded already, greedily.

    For several questions about one clip under a method without stages inside the decoder,
    ``read_encoded`` and ``ask`` prefill the clip once.
    """
    media, sampling_params = MediaOptions(system), SamplingParams(max_new_tokens, seed=seed)
    return _answer(params, [clip, question], method, media, sampling_params, encoded=[encoded])


def read(
    params: Params,
    video: Any,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    *,
    reserve: int = 256,
    seed: int = 0,
    **options: Any,
) -> Context:
    """Prefill a clip once, to ``ask`` any number of questions about it.

    Args:
        video: as for ``generate``; or a list of parts as for ``converse``, ending with a clip.
        compression: the method; None keeps all tokens.
        reserve: slots of the cache for a question and its answer; it is resized if they need more.
        seed: of methods that sample randomly.
        options: ``system``, ``use_audio``, ``use_video``, ``max_frames``, ``spec``, ``progress``,
            ``audio_stream`` and ``video_stream`` of ``generate``, which also lists the errors.
    """
    check_params(params)
    check_seed(seed)
    check_count("reserve", reserve, 0)
    parts = video if isinstance(video, list) else [] if video is None else [{"video": video}]
    method = as_method(compression)
    if method.stages(params.config.text.layers):
        raise ValueError(
            f"{type(method).__name__} prunes inside the decoder, so the question must be part of "
            "the prefill: use generate"
        )
    if parts and isinstance(parts[-1], str):
        raise ValueError("the parts of read must end with a clip: pass the last text to ask")
    (media,) = _from_options("read", options, MediaOptions)
    turn = load_turn(params, [*parts, "?"], media)
    check_positions(turn, reserve, params.config)
    return prefill_turn(params, turn, method, reserve, seed=seed, progress=media.progress)[0]


def read_encoded(
    params: Params,
    clip: Clip,
    encoded: EncodedWindow,
    method: Method,
    *,
    system: str | None = None,
    reserve: int = 256,
    seed: int = 0,
) -> Context:
    """``read`` for a clip that is encoded already: several methods share one encoding."""
    turn = UserTurn.of(params, [clip, "?"], system)
    return prefill_turn(params, turn, method, reserve, seed=seed, encoded=[encoded])[0]


def warmup(
    params: Params,
    seconds: float | Sequence[float],
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    question_tokens: int = 256,
    size: tuple[int, int] = (1280, 720),
    audio: bool = True,
    system: str | None = None,
    spec: WindowSpec | None = None,
) -> dict[str, float]:
    """Compile the programs that ``generate`` needs for clips of given lengths, by running them.

    Clips of different lengths share programs, so a few lengths serve many. With JAX's persistent
    compilation cache (which the command line enables) a second process starts faster.

    Args:
        params: from ``omnizip_jax.load``.
        seconds: one or several lengths of clips.
        compression, max_new_tokens, system, spec: as ``generate`` will receive them.
        question_tokens: tokens of the longest question, with the chat template around it.
        size: width and height of the frames in pixels.
        audio: whether the clips have audio.

    Returns:
        Wall seconds of each first run, by program and length; few where the program existed.

    Raises:
        ValueError: a length that is not positive or that the model has no positions for; a setting
            out of range.
    """
    config, method = params.config, _offline_method(params, compression)
    spec, sampling_params = config.spec if spec is None else spec, SamplingParams(max_new_tokens)
    family(config).check_spec(spec, config)
    check_flags(audio=audio)
    check_count("question_tokens", question_tokens, 1)
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be the width and the height of the frames, got {size!r}")
    for side in size:
        check_count("size", side, 1)
    lengths: list[Any] = list(seconds) if isinstance(seconds, Iterable) else [seconds]
    longest = config.text.max_positions // config.window_positions * spec.seconds
    for length in lengths:
        number = isinstance(length, int | float | np.number) and not isinstance(length, bool)
        if not (number and 0 < length <= longest):
            raise ValueError(
                f"seconds must be lengths of clips above 0 and up to {longest} s, for which the "
                f"model has positions; got {length!r}"
            )
    report: dict[str, float] = collections.defaultdict(float)
    for length in lengths:
        clip = _noise_clip(length, size, audio, spec)
        turn = UserTurn.of(params, [clip, "What happens?"], system)
        for tokens in (*(n for n in TEXT_BUCKETS if n < question_tokens), question_tokens):
            question = Text(np.resize(turn.question.tokens, tokens), np.arange(tokens))
            asked = dataclasses.replace(turn, texts=(*turn.texts[:-1], question))
            check_positions(asked, max_new_tokens, config)
            state, took = begin_turn(params, asked, method, sampling_params)
            report[f"encoders, {length:g} s"] += took["encoders"]
            report[f"compression and prefill, {length:g} s"] += took["prefill"]
            began = time.perf_counter()
            step(params, state)
            report[f"generation, {length:g} s"] += time.perf_counter() - began
    return dict(report)


def _noise_clip(seconds: float, size: tuple[int, int], audio: bool, spec: WindowSpec) -> Clip:
    """A clip of random pixels and mel."""
    rng = np.random.default_rng(0)
    empty = Window.empty(spec, math.ceil(seconds / spec.seconds))
    cells = np.array(fit_grid(size[1], size[0], spec.grid_slots), np.int32)
    grids = np.arange(empty.grid_mask.size).reshape(empty.grid_mask.shape)
    begin = spec.mel_frames * np.arange(len(empty.mel_length), dtype=np.int32)
    mel_length = np.int32(seconds * spec.mel_frames / spec.seconds) - begin
    leaves: dict[str, Any] = {  # numpy on the host, where the annotations say Array
        "patches": rng.integers(0, 256, empty.patches.shape, dtype=np.uint8),
        "grid_size": empty.grid_size * cells,
        "grid_mask": grids < seconds * spec.grids / spec.seconds,
        "mel": rng.standard_normal(empty.mel.shape, dtype=np.float32),
        "mel_length": np.clip(mel_length, 0, spec.mel_frames) * audio,
    }
    windows = empty.replace(**leaves)
    return Clip(windows, float(seconds), spec.seconds / spec.grids, True, audio, spec)
