"""The evaluator: prepares a clip once, prefills it once per method, and answers its questions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from omnizip_jax.compression import Method, RandomTokens
from omnizip_jax.compression.decoder_stages import check_stages
from omnizip_jax.evaluation.decoder_cost import cost
from omnizip_jax.evaluation.hardware import out_of_memory, peak_bytes
from omnizip_jax.evaluation.protocols import Protocol
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Key
from omnizip_jax.inference.api import answer_encoded, read_encoded
from omnizip_jax.inference.context import DEFAULT_MEMORY, Context, Memory
from omnizip_jax.inference.generation import Answer, ask
from omnizip_jax.inference.prefill import encode_clip
from omnizip_jax.inference.sequence import token_counts
from omnizip_jax.inference.streaming import feed, init_stream
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.loaded_model import Params, weights_fingerprint
from omnizip_jax.types import EncodedWindow
from omnizip_jax.window_spec import WindowSpec

QUESTION_SLOTS = 256  # cache slots for a question; the cache of a whole clip is enlarged if needed

Row = dict[str, Any]
Times = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """The cache of a clip that is read as a stream.

    Attributes:
        memory, capacity: eviction policy and size in slots; as for ``init_stream``.
    """

    memory: Memory = DEFAULT_MEMORY
    capacity: int = 8192

    def init(
        self, params: Params, method: Method, spec: WindowSpec, text_slots: int, **settings: Any
    ) -> Context:
        """``init_stream`` with this cache; ``settings`` are further arguments of it."""
        cache: dict[str, Any] = {"capacity": self.capacity, "memory": self.memory}
        return init_stream(params, method, text_slots=text_slots, spec=spec, **cache, **settings)

    def read(
        self, params: Params, clip: Clip, method: Method, text_slots: int, **settings: Any
    ) -> Context:
        """The context after all windows of a clip; arguments as for ``init``."""
        modalities = {"audio": clip.has_audio, "video": clip.has_video}
        context = self.init(params, method, clip.spec, text_slots, **modalities, **settings)
        for number in range(len(clip.windows.mel_length)):
            window = jax.tree.map(lambda x, at=number: x[at], clip.windows)
            context = feed(params, context, window)
        return jax.block_until_ready(context)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """All settings that change an answer.

    Attributes:
        methods: by their names in the results.
        protocol: prompts and scoring.
        seeds: repetitions of methods that sample tokens; other methods run once.
        spec: shape of a window; None takes the checkpoint's.
        max_frames: cap on the frames of a long clip.
        max_new_tokens: limit of a reply; None takes the protocol's.
        use_audio, use_video: False leaves that modality out.
        stream: read clips as streams into this cache; None reads them whole.
    """

    methods: dict[str, Method]
    protocol: Protocol
    seeds: int = 1
    spec: WindowSpec | None = None
    max_frames: int | None = None
    max_new_tokens: int | None = None
    use_audio: bool = True
    use_video: bool = True
    stream: StreamSettings | None = None

    @property
    def reply_tokens(self) -> int:
        return self.max_new_tokens or self.protocol.max_new_tokens

    def runs(self) -> list[tuple[str, Method, int]]:
        """Name, method and seed of every run over the questions, in the order of the results."""
        return [
            (name, method, seed)
            for name, method in self.methods.items()
            for seed in range(self.seeds if isinstance(method, RandomTokens) else 1)
        ]


class Encoding(NamedTuple):
    """An encoded clip, or the reason why there is none, and the wall time in seconds."""

    windows: EncodedWindow | None
    error: str | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class PreparedClip:
    """A decoded and encoded clip, or the reason why there is none.

    Attributes:
        media: wall time of decoding in seconds.
        encodings: by the encoder outputs that methods want (``Method.wants``); empty if the clip
            is read as a stream, which encodes each window when it is fed.
        peak: peak memory in bytes after encoding.
    """

    clip: Clip | None
    error: str | None
    media: float
    encodings: dict[frozenset[str], Encoding]
    peak: int


class Evaluator:
    """Answers questions about one clip at a time.

    Rows depend only on question, settings and weights: not on earlier questions, and not on how
    clips are distributed over processes.

    Args:
        params: from ``omnizip_jax.load``.

    Raises:
        ValueError: a method whose stages do not fit the decoder.
    """

    def __init__(self, params: Params, settings: EvaluationSettings):
        self.params, self.settings = params, settings
        layers = params.config.text.layers
        for method in settings.methods.values():
            check_stages(method.stages(layers), layers)
        self.text_slots = QUESTION_SLOTS + settings.reply_tokens
        self._spec = params.config.spec if settings.spec is None else settings.spec
        self._max_windows = None  # a stream may be longer than the model has positions
        if settings.stream is None:
            self._max_windows = params.config.text.max_positions // params.config.window_positions
        self._wants = dict.fromkeys(method.wants for method in settings.methods.values())

    def check(self) -> None:
        """Raise ``ValueError`` if a method cannot follow a stream, or its cache is too small."""
        if self.settings.stream is not None:
            for method in self.settings.methods.values():
                self.settings.stream.init(self.params, method, self._spec, self.text_slots)

    def describe(self) -> dict[str, Any]:
        """Weights and settings as JSON: runs that agree in them give the same results."""
        params, settings = self.params, self.settings
        return {
            "weights": weights_fingerprint(params),
            "dtype": str(params.dtype),
            "methods": {
                name: {"method": type(method).__name__, **dataclasses.asdict(method)}
                for name, method in settings.methods.items()
            },
            "seeds": settings.seeds,
            "protocol": settings.protocol.name,
            "window": dataclasses.asdict(self._spec),
            "max_frames": settings.max_frames,
            "max_new_tokens": settings.reply_tokens,
            "audio": settings.use_audio,
            "video": settings.use_video,
            "stream": settings.stream and dataclasses.asdict(settings.stream),
            "decoder": dataclasses.asdict(params.config.text),
        }

    def keys(self, questions: Sequence[Question]) -> list[Key]:
        """Keys of all rows for these questions about one clip, in order."""
        runs = self.settings.runs()
        return [(question.id, name, seed) for name, _, seed in runs for question in questions]

    def evaluate(
        self, questions: Sequence[Question], done: Collection[Key] = ()
    ) -> Iterator[tuple[Row, Times]]:
        """Rows and times for questions about one clip: ``prepare``, then ``answer``."""
        return self.answer(self.prepare(questions), questions, done)

    def prepare(self, questions: Sequence[Question]) -> PreparedClip:
        """Decode and encode the clip of these questions; thread-safe, so it may run ahead."""
        first, settings = questions[0], self.settings
        began = time.perf_counter()
        try:
            clip = load_clip(
                first.video,
                self._spec,
                start=first.start,
                end=first.end,
                max_frames=settings.max_frames,
                max_windows=self._max_windows,
                use_audio=settings.use_audio,
                use_video=settings.use_video,
            )
        except (ValueError, OSError) as error:
            return PreparedClip(None, str(error), time.perf_counter() - began, {}, peak_bytes())
        media, encodings = time.perf_counter() - began, {}
        for wants in self._wants if settings.stream is None else ():
            began, encoded, error = time.perf_counter(), None, None
            try:
                encoded = encode_clip(self.params, clip.windows, wants=wants)
                jax.block_until_ready(encoded)
            except jax.errors.JaxRuntimeError as problem:
                error = out_of_memory(problem, clip)
            encodings[wants] = Encoding(encoded, error, time.perf_counter() - began)
        return PreparedClip(clip, None, media, encodings, peak_bytes())

    def answer(
        self, prepared: PreparedClip, questions: Sequence[Question], done: Collection[Key] = ()
    ) -> Iterator[tuple[Row, Times]]:
        """A row and its times for each method, seed and question.

        Args:
            prepared: from ``prepare`` with the same questions.
            done: keys of existing rows, which are skipped.
        """
        for name, method, seed in self.settings.runs():
            reader = _ClipReader(self, prepared, method, seed)
            for question in questions:
                if (question.id, name, seed) not in done:
                    row = question.columns | {"method": name, "seed": seed}
                    yield self._row(reader, question, row)

    def _row(self, reader: _ClipReader, question: Question, row: Row) -> tuple[Row, Times]:
        began, prepared, answer = time.perf_counter(), reader.prepared, None
        seconds, read, error = {"media": prepared.media}, 0.0, prepared.error
        if reader.encoding is not None:
            seconds["encoders"], error = reader.encoding.seconds, reader.encoding.error
        times: Times = {key: row[key] for key in ("id", "method", "seed")} | {"seconds": seconds}
        if error is None:
            try:
                answer, read = reader.ask(question)
            except ValueError as problem:
                error = str(problem)
            except jax.errors.JaxRuntimeError as problem:
                error = out_of_memory(problem, prepared.clip)
        if answer is None:
            seconds["failed"] = time.perf_counter() - began
            correct = None if question.answer is None else False  # as in the authors' scripts
            row |= {"reply": None, "read": None, "correct": correct, "tokens": None, "cost": None}
            return row | {"error": error}, times
        found = cost(
            self.params.config.text,
            reader.method,
            answer.counts,
            answer.compression,
            value_bytes=self.params.dtype.itemsize,
        )
        row |= {
            "reply": answer.text,
            "read": self.settings.protocol.answer_in(question, answer.text),
            "correct": self.settings.protocol.score(question, answer.text),
            "tokens": dataclasses.asdict(answer.counts) | {"planned": reader.planned},
            "cost": found.columns(),
            "error": None,
        }
        seconds["prefill"] = read + answer.seconds["prefill"]
        seconds["decoding"] = answer.seconds["generation"]
        seconds["first token"] = seconds.get("encoders", 0.0) + seconds["prefill"]
        seconds["latency"] = seconds["media"] + seconds["first token"] + seconds["decoding"]
        peaks = {"encoders": prepared.peak, "prefill": reader.peak, "decoding": peak_bytes()}
        return row, times | {"peak bytes": peaks}


class _ClipReader:
    """A prepared clip under one method: prefilled for the first question, shared by the others.

    Attributes:
        encoding: with the features that the method wants; None if the clip is not encoded.
        planned: upper limit of the media tokens that the method keeps.
        peak: peak memory in bytes after the prefill.
    """

    def __init__(self, evaluator: Evaluator, prepared: PreparedClip, method: Method, seed: int):
        self.prepared, self.method = prepared, method
        self._evaluator, self._seed = evaluator, seed
        self._contexts: dict[str | None, tuple[Context, float]] = {}  # by system prompt
        self.encoding = prepared.encodings.get(method.wants)
        self.planned = self.peak = 0
        if prepared.clip is not None:
            counts = token_counts(prepared.clip.windows, evaluator.params.config)
            self.planned = method.plan(*counts).total

    def ask(self, question: Question) -> tuple[Answer, float]:
        """The answer, and the seconds of the clip's prefill that the answer does not contain."""
        clip, encoded = self.prepared.clip, self.encoding and self.encoding.windows
        params, settings = self._evaluator.params, self._evaluator.settings
        prompt = settings.protocol.prompt(question)
        system, limit = settings.protocol.system_of(question), settings.reply_tokens
        assert clip is not None
        if encoded is not None and self.method.stages(params.config.text.layers):
            common = {"system": system, "seed": self._seed, "max_new_tokens": limit}
            answer = answer_encoded(params, clip, encoded, prompt, self.method, **common)
            self.peak = peak_bytes()
            return answer, 0.0
        if system not in self._contexts:
            began = time.perf_counter()
            context = self._read(clip, encoded, system)
            self._contexts[system] = context, time.perf_counter() - began
            self.peak = peak_bytes()
        context, seconds = self._contexts[system]
        return ask_context(params, context, prompt, max_new_tokens=limit), seconds

    def _read(self, clip: Clip, encoded: EncodedWindow | None, system: str | None) -> Context:
        params, slots = self._evaluator.params, self._evaluator.text_slots
        common = {"system": system, "seed": self._seed}
        if (stream := self._evaluator.settings.stream) is not None:
            return stream.read(params, clip, self.method, slots, **common)
        assert encoded is not None
        return read_encoded(params, clip, encoded, self.method, reserve=slots, **common)


def ask_context(params: Params, context: Context, question: str, **sampling_params: Any) -> Answer:
    """``ask``, counting the text before the question too, as ``generate`` does."""
    answer, _ = ask(params, context, question, **sampling_params)
    before = int(context.state.origin) + len(context.prefill_config.markers)
    counts = dataclasses.replace(answer.counts, text=answer.counts.text + before)
    return dataclasses.replace(answer, counts=counts)
