"""Answers the questions about one clip: it is read once for each method, and asked about often."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from omnizip_jax.compression import Method, RandomTokens
from omnizip_jax.config import WindowSpec
from omnizip_jax.evaluation.decoder_cost import cost
from omnizip_jax.evaluation.memory import out_of_memory, peak_bytes
from omnizip_jax.evaluation.protocols import Protocol
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.evaluation.result_files import Key
from omnizip_jax.evaluation.watching import QUESTION_ROOM, Watching, ask_alone
from omnizip_jax.inference.api import answer_encoded
from omnizip_jax.inference.context import Context
from omnizip_jax.inference.generation import Answer
from omnizip_jax.inference.prefill import encode_clip, read_encoded
from omnizip_jax.inference.sequence import token_counts
from omnizip_jax.media import Clip, load_clip
from omnizip_jax.models.params import Params, WeightsIdentity
from omnizip_jax.models.registry import family
from omnizip_jax.types import EncodedWindow

Row = dict[str, Any]
Times = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked, and how; whatever changes an answer is here.

    Attributes:
        methods: by the name that the results have it under.
        protocol: how questions are worded and replies are read.
        seeds: of methods that draw; others are asked once.
        spec: the shape of a window; None is the checkpoint's own.
        max_frames: cap on the frames of a long clip.
        max_new_tokens: where a reply ends at the latest; None is the protocol's.
        use_audio, use_video: False leaves that modality out.
        watching: read clips as streams, remembered like this; None reads them whole.
    """

    methods: dict[str, Method]
    protocol: Protocol
    seeds: int = 1
    spec: WindowSpec | None = None
    max_frames: int | None = None
    max_new_tokens: int | None = None
    use_audio: bool = True
    use_video: bool = True
    watching: Watching | None = None

    @property
    def reply_tokens(self) -> int:
        return self.max_new_tokens or self.protocol.max_new_tokens

    def runs(self) -> list[tuple[str, Method, int]]:
        """Every method with every seed, in the order of the results."""
        return [
            (name, method, seed)
            for name, method in self.methods.items()
            for seed in range(self.seeds if isinstance(method, RandomTokens) else 1)
        ]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A clip that is decoded and encoded, or why it is not.

    Attributes:
        encoded: None if the clip is read as a stream.
        seconds: wall time of "media" and "encoders".
        peak: bytes in use at the most, once it was encoded.
    """

    clip: Clip | None
    encoded: EncodedWindow | None
    error: str | None
    seconds: dict[str, float]
    peak: int


class Engine:
    """A model that answers questions about clips, one clip at a time.

    Results depend on nothing but the question, the settings and the weights: neither on what was
    asked before, nor on how clips are spread over processes.

    Args:
        params: from ``omnizip_jax.load``.
        settings: what is asked, and how.
    """

    def __init__(self, params: Params, settings: Settings):
        self.params, self.settings = params, settings
        self._spec = params.config.spec if settings.spec is None else settings.spec
        self._longest = None  # windows of a clip: a stream has no end
        if settings.watching is None:
            self._longest = params.config.text.max_positions // params.config.window_positions
        self._wants = frozenset().union(*(method.wants for method in settings.methods.values()))
        self._bytes = family(params.config).compute_dtype(params.weights).itemsize

    def check(self) -> None:
        """Raise ``ValueError`` if a method cannot follow a stream, or its cache is too small."""
        watching = self.settings.watching
        if watching is not None:
            for method in self.settings.methods.values():
                watching.begin(self.params, method, self._spec, self.text_slots)

    @property
    def text_slots(self) -> int:
        """Room for a question and its reply."""
        return QUESTION_ROOM + self.settings.reply_tokens

    def describe(self) -> dict[str, Any]:
        """What is run, as JSON has it: runs that agree in this give the same results."""
        params, settings = self.params, self.settings
        return {
            "weights": params.fingerprint or list(WeightsIdentity(params).values),
            "dtype": str(family(params.config).compute_dtype(params.weights)),
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
            "stream": settings.watching and dataclasses.asdict(settings.watching),
            "decoder": dataclasses.asdict(params.config.text),
        }

    def rows(
        self, questions: Sequence[Question], done: Collection[Key] = ()
    ) -> Iterator[tuple[Row, Times]]:
        """Rows and times of questions about one clip; see ``prepare`` and ``answer``."""
        return self.answer(self.prepare(questions), questions, done)

    def keys(self, questions: Sequence[Question]) -> list[Key]:
        """Of all rows that these questions about one clip lead to, in their order."""
        runs = self.settings.runs()
        return [(question.id, name, seed) for name, _, seed in runs for question in questions]

    def prepare(self, questions: Sequence[Question]) -> Prepared:
        """Decode and encode the clip that these questions are about.

        Needs nothing of the clip before it: call it in a thread while another clip is asked about.
        """
        first, settings, config = questions[0], self.settings, self.params.config
        began = time.perf_counter()
        try:
            clip = load_clip(
                first.video,
                self._spec,
                start=first.start,
                end=first.end,
                max_frames=settings.max_frames,
                max_windows=self._longest,
                use_audio=settings.use_audio,
                use_video=settings.use_video,
            )
        except (ValueError, OSError) as error:
            seconds = {"media": time.perf_counter() - began}
            return Prepared(None, None, str(error), seconds, peak_bytes())
        decoded, encoded, error = time.perf_counter(), None, None
        if settings.watching is None:  # else every window is encoded when it is fed
            try:
                encoded = encode_clip(self.params.weights, clip.windows, config, wants=self._wants)
                jax.block_until_ready(encoded)
            except jax.errors.JaxRuntimeError as problem:
                error = out_of_memory(problem, clip)
        seconds = {"media": decoded - began, "encoders": time.perf_counter() - decoded}
        return Prepared(clip, encoded, error, seconds, peak_bytes())

    def answer(
        self, prepared: Prepared, questions: Sequence[Question], done: Collection[Key] = ()
    ) -> Iterator[tuple[Row, Times]]:
        """A row of results for each method, seed and question, and its times.

        Args:
            prepared: of these questions.
            done: rows that are there already.
        """
        for name, method, seed in self.settings.runs():
            reader = _Reader(self, prepared, method, seed)
            for question in questions:
                if (question.id, name, seed) not in done:
                    row = question.columns | {"method": name, "seed": seed}
                    yield self._ask(reader, question, row)

    def _ask(self, reader: _Reader, question: Question, row: Row) -> tuple[Row, Times]:
        began = time.perf_counter()
        seconds = dict(reader.prepared.seconds)
        times: Times = {key: row[key] for key in ("id", "method", "seed")}
        error = reader.prepared.error
        if error is None:
            try:
                answer, read = reader.ask(question)
            except ValueError as problem:
                error = str(problem)
            except jax.errors.JaxRuntimeError as problem:
                error = out_of_memory(problem, reader.prepared.clip)
        if error is not None:
            right = None if question.answer is None else False  # the authors count it as wrong
            row |= {"reply": None, "correct": right, "tokens": None, "cost": None, "error": error}
            return row, times | {"seconds": seconds | {"failed": time.perf_counter() - began}}
        row |= {
            "reply": answer.text,
            "correct": self.settings.protocol.score(question, answer.text),
            "tokens": dataclasses.asdict(answer.counts) | {"planned": reader.planned},
            "cost": self._cost(reader.method, answer),
            "error": None,
        }
        seconds |= {
            "prefill": read + answer.seconds["prefill"],
            "decoding": answer.seconds["generation"],
        }
        first = seconds["encoders"] + seconds["prefill"]
        latency = seconds["media"] + first + seconds["decoding"]
        times["seconds"] = seconds | {"first token": first, "latency": latency}
        times["peak bytes"] = {
            "encoders": reader.prepared.peak,
            "prefill": reader.peak,
            "decoding": peak_bytes(),
        }
        return row, times

    def _cost(self, method: Method, answer: Answer) -> dict[str, Any]:
        found = cost(
            self.params.config.text,
            method,
            answer.counts,
            answer.compression,
            value_bytes=self._bytes,
        )
        values = dataclasses.asdict(found) | {"seats_operations": found.seats_operations}
        del values["tokens"]
        return values


class _Reader:
    """A prepared clip under one method: read for the first question, then asked about.

    Attributes:
        planned: the most media tokens that the method says it keeps.
        peak: bytes in use at the most, once the clip was read.
    """

    def __init__(self, engine: Engine, prepared: Prepared, method: Method, seed: int):
        self.prepared, self.method = prepared, method
        self._engine, self._seed = engine, seed
        self._read: dict[str, tuple[Context, float]] = {}  # by system prompt
        self.planned = self.peak = 0
        if prepared.clip is not None:
            counts = token_counts(prepared.clip.windows, engine.params.config)
            self.planned = method.bound(*counts)

    def ask(self, question: Question) -> tuple[Answer, float]:
        """The answer, and the seconds that it took to read the clip."""
        clip, encoded = self.prepared.clip, self.prepared.encoded
        assert clip is not None
        params, settings = self._engine.params, self._engine.settings
        words = settings.protocol.prompt(question)
        system, tokens = settings.protocol.system_of(question), settings.reply_tokens
        if encoded is not None and self.method.stages(params.config.text.layers):
            answer = answer_encoded(
                params,
                clip,
                encoded,
                words,
                self.method,
                system=system,
                seed=self._seed,
                max_new_tokens=tokens,
            )
            self.peak = peak_bytes()
            return answer, 0.0
        if system not in self._read:
            began = time.perf_counter()
            context = self._context(clip, encoded, system)
            self._read[system] = context, time.perf_counter() - began
            self.peak = peak_bytes()
        context, seconds = self._read[system]
        return ask_alone(params, context, words, max_new_tokens=tokens), seconds

    def _context(self, clip: Clip, encoded: EncodedWindow | None, system: str) -> Context:
        """The clip, read whole or as a stream."""
        params, room = self._engine.params, self._engine.text_slots
        watching = self._engine.settings.watching
        if watching is not None:
            return watching.watch(params, clip, self.method, room, system=system, seed=self._seed)
        assert encoded is not None
        return read_encoded(
            params, clip, encoded, self.method, system=system, room=room, seed=self._seed
        )
