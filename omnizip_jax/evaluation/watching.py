"""A clip read as a stream, window by window, into a cache that does not grow; and asked about."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from omnizip_jax.compression import Method
from omnizip_jax.config import WindowSpec
from omnizip_jax.inference.context import DEFAULT_MEMORY, Context, Memory
from omnizip_jax.inference.generation import Answer, ask
from omnizip_jax.inference.streaming import feed, init_stream
from omnizip_jax.media import Clip
from omnizip_jax.models.params import Params

QUESTION_ROOM = 256  # slots for a question; the cache of a clip that is read whole grows if need be


@dataclasses.dataclass(frozen=True)
class Watching:
    """How a stream is remembered.

    Attributes:
        memory, capacity: what a full cache forgets, and its slots; as for ``init_stream``.
    """

    memory: Memory = DEFAULT_MEMORY
    capacity: int = 8192

    def begin(
        self, params: Params, method: Method, spec: WindowSpec, text_slots: int, **settings: Any
    ) -> Context:
        """A stream before its first window.

        Args:
            settings: further ones of ``init_stream``.

        Raises:
            ValueError: see ``init_stream``.
        """
        return init_stream(
            params,
            method,
            capacity=self.capacity,
            memory=self.memory,
            text_slots=text_slots,
            spec=spec,
            **settings,
        )

    def watch(
        self, params: Params, clip: Clip, method: Method, text_slots: int, **settings: Any
    ) -> Context:
        """What is remembered at the end of a clip; arguments and errors as for ``begin``."""
        seen = {"audio": clip.has_audio, "video": clip.has_video}
        context = self.begin(params, method, clip.spec, text_slots, **seen, **settings)
        for number in range(len(clip.windows.mel_length)):
            window = jax.tree.map(lambda x, at=number: x[at], clip.windows)
            context = feed(params, context, window)
        return jax.block_until_ready(context)


def ask_alone(params: Params, context: Context, question: str, **sampling_params: Any) -> Answer:
    """``ask``, with all text of the prompt counted, as ``generate`` does."""
    answer, _ = ask(params, context, question, **sampling_params)
    before = int(context.state.origin) + len(context.prefill_config.markers)
    counts = dataclasses.replace(answer.counts, text=answer.counts.text + before)
    return dataclasses.replace(answer, counts=counts)
