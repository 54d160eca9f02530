"""What the model has read: keys, values, what each slot is, and how it came to be.

A conversation is a sequence of texts and windows; tokens enter through ``entry``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.novelty import Expected
from omnizip_jax.config import WindowSpec
from omnizip_jax.memory import AUDIO, VIDEO, Memory, Slots
from omnizip_jax.models.families import Config, family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params, WeightsMark, check_params
from omnizip_jax.models.text import KVCache
from omnizip_jax.prompt import Medium
from omnizip_jax.types import Selection


@dataclasses.dataclass(frozen=True)
class Reading:
    """How windows become tokens; static under ``jax.jit``."""

    config: Config
    method: Method
    spec: WindowSpec
    medium: Medium  # what the windows have: sound, pictures, or both
    kernels: Kernels

    @classmethod
    def of(cls, params: Params, method: Method, spec: WindowSpec, medium: Medium) -> Reading:
        """With the kernels that suit the weights."""
        return cls(params.config, method, spec, medium, Kernels.of(params.weights))

    @property
    def markers(self) -> tuple[int, ...]:
        """What opens a clip; all at one position."""
        return family(self.config).start_markers(self.config, self.medium.audio, self.medium.video)

    @property
    def block(self) -> int:
        """Static slots of one streamed window: the most that may be kept of it."""
        audio = self.spec.audio_slots * self.medium.audio
        video = self.spec.video_slots * self.medium.video
        return len(self.markers) + self.method.step_bound(audio, video)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How long things are remembered, and by whom; known to the host alone.

    Attributes:
        system: the system prompt.
        mark: tells the weights that the context was read with.
        memory: what leaves a full cache; None lets the cache grow instead.
        low_water: slots that stay in use after the cache was full.
        text_slots: room that windows leave for a question and its answer.
    """

    system: str
    mark: WeightsMark
    memory: Memory | None = None
    low_water: int = 0
    text_slots: int = 0


class Past(struct.PyTreeNode):
    """Where a conversation stands.

    Attributes:
        slots: what each slot of the cache belongs to.
        plan: what the method remembers of a stream; None where it looked ahead.
        expected: what is usual in a stream, by which it is told what is worth remembering.
        key: for methods that draw.
        origin: position right after the prompt's prefix.
        time: position at which the next window, or the next clip, begins.
        base: position from which rows and columns of the open clip count.
        after: position of a text that would follow now.
        unit: number of the next unit of the cache.
        in_video: a clip is open; the next text closes it.
        windows: so far.
        seen, kept: audio and video tokens, from the beginning.
        overflow: tokens that a method kept beyond its own bound; they would be lost.
    """

    slots: Slots
    plan: Any
    expected: Expected | None
    key: PRNGKeyArray
    origin: Int[Array, ""]
    time: Int[Array, ""]
    base: Int[Array, ""]
    after: Int[Array, ""]
    unit: Int[Array, ""]
    in_video: Bool[Array, ""]
    windows: Int[Array, ""]
    seen: Int[Array, " 2"]
    kept: Int[Array, " 2"]
    overflow: Int[Array, ""]

    @classmethod
    def nothing(
        cls, slots: int, key: PRNGKeyArray, plan: Any = None, expected: Expected | None = None
    ) -> Past:
        """Before the first token."""
        zero = jnp.int32(0)
        return cls(
            slots=Slots.empty(slots),
            plan=plan,
            expected=expected,
            key=key,
            origin=zero,
            time=zero,
            base=zero,
            after=zero,
            unit=zero,
            in_video=jnp.bool_(False),
            windows=zero,
            seen=jnp.zeros(2, jnp.int32),
            kept=jnp.zeros(2, jnp.int32),
            overflow=zero,
        )

    def opened(self, prefix: Int[Array, ""], slots: int) -> Past:
        """Behind a prompt's prefix of so many tokens, the first in a cache of ``slots``."""
        return self.replace(
            slots=Slots.empty(slots), origin=prefix, time=prefix, base=prefix, after=prefix
        )


class Context(struct.PyTreeNode):
    """All that was read so far: hand it from call to call.

    Attributes:
        cache: keys and values of everything remembered.
        past: where the conversation stands.
        trace: what the method did with the last window, or with the windows of the last clip.
        reading, keeping: how windows are read, and how long they are remembered.
        filled, reached: the host's upper bounds on slots and positions in use, so that it need not
            wait for the device before every window.
    """

    cache: KVCache
    past: Past
    trace: Selection | None
    reading: Reading = struct.field(pytree_node=False)
    keeping: Keeping = struct.field(pytree_node=False)
    filled: int = struct.field(pytree_node=False)
    reached: int = struct.field(pytree_node=False)

    @classmethod
    def nothing(
        cls,
        params: Params,
        reading: Reading,
        keeping: Keeping,
        seed: int,
        plan: Any = None,
        expected: Expected | None = None,
    ) -> Context:
        """Before the first token, and without a slot.

        Args:
            seed: for methods that draw.
            plan, expected: what a stream begins with (``Past``).
        """
        dtype = family(reading.config).weights_dtype(params.weights)
        cache = KVCache.empty(reading.config.text, 0, dtype)
        past = Past.nothing(0, jax.random.key(seed), plan, expected)
        cache, past = commit((cache, past), jax.tree.leaves(params.weights)[0])
        return cls(cache, past, None, reading, keeping, 0, 0)

    @property
    def capacity(self) -> int:
        """Slots of the cache."""
        return self.cache.keys.shape[1]

    @property
    def fill(self) -> float:
        """Share of the cache in use."""
        return int(self.cache.length) / self.capacity

    @property
    def seen(self) -> Int[Array, " 2"]:
        """Audio and video tokens that came."""
        return self.past.seen

    @property
    def kept(self) -> Int[Array, " 2"]:
        """Audio and video tokens that the decoder read."""
        return self.past.kept

    @property
    def remembered(self) -> dict[int, int]:
        """Audio and video tokens in the cache, by the unit of the window that they belong to.

        The unit of the last window is ``past.unit - 1``; windows of which nothing is left lack.
        """
        length, slots = int(self.cache.length), self.past.slots
        kind, unit = np.asarray(slots.kind)[:length], np.asarray(slots.unit)[:length]
        units, tokens = np.unique(unit[(kind == AUDIO) | (kind == VIDEO)], return_counts=True)
        return dict(zip(units.tolist(), tokens.tolist(), strict=True))

    @property
    def seconds(self) -> int:
        """Seconds of windows that were read."""
        return int(self.past.windows) * self.reading.spec.seconds


def fork(context: Context) -> Context:
    """A copy that shares nothing with its original: feed and ask each as you like."""
    check_usable(context)
    return context.replace(cache=jax.tree.map(jnp.copy, context.cache))


def check_context(params: Params, context: Context) -> None:
    """Raise ``ValueError`` unless the context was read with these weights and is not used up."""
    check_params(params)
    check_usable(context)
    if params.config != context.reading.config or not context.keeping.mark.matches(params):
        raise ValueError(
            "this context was begun with another model: use the params that it was read with, or "
            "begin a new one"
        )


def check_usable(context: Context) -> None:
    """Raise ``ValueError`` unless it is a context that no feed has used up."""
    if not isinstance(context, Context):
        raise ValueError(
            "the context must be what omnizip_jax.read, init_stream or feed returns, got "
            f"{type(context).__name__}"
        )
    if context.cache.keys.is_deleted():
        raise ValueError(
            "this state was used up by an earlier feed: go on with the one that it returned (or "
            "begin anew, if it was interrupted; a fork outlives its original)"
        )


def commit(tree: Any, like: Array) -> Any:
    """Put fresh arrays where the model's are; jit would compile again for ones that float."""
    return jax.device_put(tree, like.sharding)
