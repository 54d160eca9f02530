"""A random clip and a question, and the way of ``generate`` from them to the first token."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from benchmarks import presets
from benchmarks.harness import program_bytes
from benchmarks.run_state import Bench
from omnizip_jax.compression import AllTokens, Method, OmniZipConfig
from omnizip_jax.inference import prefill
from omnizip_jax.inference.api import begin_turn
from omnizip_jax.inference.chat_template import Text
from omnizip_jax.inference.decode import DecodeState, SamplingParams
from omnizip_jax.inference.inputs import UserTurn
from omnizip_jax.inference.prefill import encode_clip
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.registry import family
from omnizip_jax.types import EncodedWindow

FULL = AllTokens()
KEEP_45 = OmniZipConfig()
KEEP_35 = OmniZipConfig(rho_audio=0.4, rho_video=0.7)


class NoiseClip:
    """A random clip with a random question, for one model."""

    def __init__(self, bench: Bench):
        self.config, self.weights = bench.config, bench.weights
        # The words are random, and so are the ids of markers: the tokenizer is never asked.
        params = presets.random_params(bench.config, bench.dtype, bench.weights)
        self.params = params.replace(config=bench.config)
        self.count = bench.windows
        self.clip = presets.random_clip(bench.windows, bench.config)
        self.windows = self.clip.windows
        self.prompt = presets.random_prompt(bench.config)

    @property
    def turn(self) -> UserTurn:
        """Clip and prompt as ``generate`` has them: start markers are the clip's."""
        prompt = self.prompt
        starts = len(family(self.config).start_markers(self.config, audio=True, video=True))
        before = Text(prompt.prefix[:-starts], prompt.prefix_positions[:-starts])
        question = Text(prompt.suffix, prompt.suffix_positions)
        return UserTurn((self.clip,), (before, question), system="")

    def encode(self) -> EncodedWindow:
        """Both encoders, as ``generate`` runs them."""
        return jax.block_until_ready(encode_clip(self.params, self.windows))

    @functools.cached_property
    def encoded(self) -> EncodedWindow:
        return self.encode()

    def prefill(self, method: Method, free_slots: int = 64) -> Prefill:
        """Compile a prefill; ``free_slots`` are for the tokens of the answer."""
        return Prefill(self, method, free_slots)


class Prefill:
    """To the first token's logits, by the calls that ``generate`` makes once the media are loaded.

    Attributes:
        tokens: that the decoder reads.
        slots: of its inputs, padding included.
        temporary: bytes that a program needs besides its arguments and results, at most.
        result: bytes of a program's results, the cache first of all, at most.
    """

    def __init__(self, clip: NoiseClip, method: Method, free_slots: int):
        self.clip, self.method, self.free_slots = clip, method, free_slots
        with recorded(prefill, "prefill_clip") as calls:
            generation = self(clip.encoded)
        ((program, _, _),) = calls
        self.temporary, self.result = program_bytes(program)
        self.tokens = int(generation.cache.length)
        chunk = Backend.of(clip.weights).prefill_chunks[-1]
        self.slots = -(-self.tokens // chunk) * chunk

    def __call__(self, encoded: EncodedWindow | None = None) -> DecodeState:
        """From given outputs of the encoders; without, the encoders run too."""
        generation, _ = begin_turn(
            self.clip.params,
            self.clip.turn,
            self.method,
            SamplingParams(self.free_slots),
            encoded=None if encoded is None else [encoded],
        )
        return jax.block_until_ready(generation.decode_state)


@contextlib.contextmanager
def recorded(module: Any, name: str) -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    """Each call of a jitted function in a module: the compiled program, and its arguments."""
    function, calls = getattr(module, name), []

    def call(*args: Any, **static: Any) -> Any:
        calls.append((function.lower(*args, **static).compile(), args, static))
        return function(*args, **static)

    with mock.patch.object(module, name, call):
        yield calls
