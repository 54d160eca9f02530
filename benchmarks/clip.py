"""A clip and a question on the device, and the programs of ``generate`` that read them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import presets
from benchmarks.bench import Bench
from benchmarks.harness import program_bytes
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.decode import Generation
from omnizip_jax.generate import (
    PromptArrays,
    encode_clip,
    first_token,
    pad_windows,
    prefill_sizes,
    token_counts,
)
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.types import EncodedWindow

FULL = None
KEEP_45 = OmniZipConfig()
KEEP_35 = OmniZipConfig(rho_audio=0.4, rho_video=0.7)


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The compiled program from encoder outputs to the first token.

    Attributes:
        tokens: that the decoder reads.
        slots: of its input, padding included.
        temporary: bytes that the program needs besides its arguments and results.
        result: bytes of its results, the cache first of all.
    """

    tokens: int
    slots: int
    temporary: int
    result: int
    program: Any
    arguments: Any

    def __call__(self, encoded: EncodedWindow) -> Generation:
        generation, _, _ = self.program(self.arguments[0], encoded, *self.arguments[1:])
        return jax.block_until_ready(generation)


class NoiseClip:
    """A random clip with a random question, for one model."""

    def __init__(self, bench: Bench):
        self.config, self.weights = bench.config, bench.weights
        self.windows = presets.random_windows(bench.windows, bench.config)
        self.prompt = presets.random_prompt(bench.config)
        self.count = bench.windows

    def encode(self) -> EncodedWindow:
        """Both encoders, as ``generate`` runs them."""
        return jax.block_until_ready(encode_clip(self.weights, self.windows, self.config))

    @functools.cached_property
    def encoded(self) -> EncodedWindow:
        return self.encode()

    def prefill(self, compression: OmniZipConfig | None, room: int = 64) -> Prefill:
        """Compile compression and prefill with the sizes that ``generate`` would choose.

        ``room`` is for the tokens of the answer.
        """
        audio, video = token_counts(self.windows)
        text = len(self.prompt.prefix) + len(self.prompt.suffix)
        sizes = prefill_sizes(audio, video, text, compression, room)
        layout = self.windows.replace(patches=None, mel=None)
        arguments = (
            self.weights,
            pad_windows(layout, self.encoded.video_mask.shape[0]),
            PromptArrays.from_prompt(self.prompt),
            jnp.int32(self.count - 1),
            jax.random.key(0),
        )
        program = first_token.lower(
            arguments[0],
            self.encoded,
            *arguments[1:],
            config=self.config,
            compression=compression,
            kernels=Kernels.of(self.weights),
            **sizes,
        ).compile()
        _, _, count = program(arguments[0], self.encoded, *arguments[1:])
        temporary, result = program_bytes(program)
        return Prefill(
            tokens=int(count),
            slots=sizes["capacity"],
            temporary=temporary,
            result=result,
            program=program,
            arguments=arguments,
        )
