"""What the model has read: keys, values, what each slot is, and how it came to be.

A conversation is a sequence of texts and windows; tokens enter through ``entry``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.novelty import Expected
from omnizip_jax.config import WindowSpec
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.models.params import Params, WeightsIdentity, check_params
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import Selection, TokenKind

Memory = Literal["recent", "fading"]
DEFAULT_MEMORY: Memory = "fading"  # docs/streaming.md has the curve


class SlotMetadata(struct.PyTreeNode):
    """What is known of every slot of the cache, in the order of time.

    Attributes:
        kind: ``TokenKind``. The prefix is never evicted; start tokens leave with the last token
            of their video.
        unit: number of the window, turn or start that wrote it; grows along the cache.
        time: position at which its unit begins.
        base: position at which its video begins, from which rows and columns count; for text the
            same as ``time``. Grows along the cache.
        importance: 1 for an average token; the least important slots are evicted first.
    """

    kind: Int[Array, " S"]
    unit: Int[Array, " S"]
    time: Int[Array, " S"]
    base: Int[Array, " S"]
    importance: Float[Array, " S"]

    @classmethod
    def empty(cls, slots: int) -> SlotMetadata:
        zeros = jnp.zeros(slots, jnp.int32)
        return cls(zeros, zeros, zeros, zeros, jnp.ones(slots, jnp.float32))

    def write(self, block: SlotMetadata, start: Int[Array, ""]) -> SlotMetadata:
        """Describe a block that is written to the cache at ``start``."""

        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (start,))

        return jax.tree.map(update, self, block)


@dataclasses.dataclass(frozen=True)
class PrefillConfig:
    """How windows become tokens; static under ``jax.jit``."""

    config: Config
    method: Method
    spec: WindowSpec
    modalities: Modalities  # what the windows have: sound, pictures, or both
    backend: Backend

    @classmethod
    def of(
        cls, params: Params, method: Method, spec: WindowSpec, modalities: Modalities
    ) -> PrefillConfig:
        """With the kernels that suit the weights."""
        return cls(params.config, method, spec, modalities, Backend.of(params.weights))

    @property
    def markers(self) -> tuple[int, ...]:
        """What opens a clip; all at one position."""
        return family(self.config).start_markers(
            self.config, self.modalities.audio, self.modalities.video
        )

    @property
    def block(self) -> int:
        """Static slots of one streamed window: the most that may be kept of it."""
        audio = self.spec.audio_slots * self.modalities.audio
        video = self.spec.video_slots * self.modalities.video
        return len(self.markers) + self.method.step_bound(audio, video)


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
    """How long things are remembered, and by whom; known to the host alone.

    Attributes:
        system: the system prompt.
        mark: tells the weights that the context was read with.
        memory: what leaves a full cache; None lets the cache grow instead.
        low_water: slots that stay in use after the cache was full.
        text_slots: room that windows leave for a question and its answer.
    """

    system: str
    mark: WeightsIdentity
    memory: Memory | None = None
    low_water: int = 0
    text_slots: int = 0


class StreamState(struct.PyTreeNode):
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

    slots: SlotMetadata
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
    def initial(
        cls, slots: int, key: PRNGKeyArray, plan: Any = None, expected: Expected | None = None
    ) -> StreamState:
        """Before the first token."""
        zero = jnp.int32(0)
        return cls(
            slots=SlotMetadata.empty(slots),
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

    def after_prefix(self, prefix: Int[Array, ""], slots: int) -> StreamState:
        """Behind a prompt's prefix of so many tokens, the first in a cache of ``slots``."""
        return self.replace(
            slots=SlotMetadata.empty(slots), origin=prefix, time=prefix, base=prefix, after=prefix
        )


class Context(struct.PyTreeNode):
    """All that was read so far: hand it from call to call.

    Attributes:
        cache: keys and values of everything remembered.
        state: where the conversation stands.
        trace: what the method did with the last window, or with the windows of the last clip.
        prefill_config, retention: how windows are read, and how long they are remembered.
        used_slots, used_positions: upper bounds on the slots and positions in use, known on the
            host, so that it need not wait for the device before every window.
    """

    cache: KVCache
    state: StreamState
    trace: Selection | None
    prefill_config: PrefillConfig = struct.field(pytree_node=False)
    retention: RetentionPolicy = struct.field(pytree_node=False)
    used_slots: int = struct.field(pytree_node=False)
    used_positions: int = struct.field(pytree_node=False)

    @classmethod
    def initial(
        cls,
        params: Params,
        prefill_config: PrefillConfig,
        retention: RetentionPolicy,
        seed: int,
        plan: Any = None,
        expected: Expected | None = None,
    ) -> Context:
        """Before the first token, and without a slot.

        Args:
            seed: for methods that draw.
            plan, expected: what a stream begins with (``StreamState``).
        """
        dtype = family(prefill_config.config).compute_dtype(params.weights)
        cache = KVCache.empty(prefill_config.config.text, 0, dtype)
        state = StreamState.initial(0, jax.random.key(seed), plan, expected)
        cache, state = commit((cache, state), jax.tree.leaves(params.weights)[0])
        return cls(cache, state, None, prefill_config, retention, 0, 0)

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
        return self.state.seen

    @property
    def kept(self) -> Int[Array, " 2"]:
        """Audio and video tokens that the decoder read."""
        return self.state.kept

    @property
    def retained(self) -> dict[int, int]:
        """Audio and video tokens in the cache, by the unit of the window that they belong to.

        The unit of the last window is ``past.unit - 1``; windows of which nothing is left lack.
        """
        length, slots = int(self.cache.length), self.state.slots
        kind, unit = np.asarray(slots.kind)[:length], np.asarray(slots.unit)[:length]
        units, tokens = np.unique(
            unit[(kind == TokenKind.AUDIO) | (kind == TokenKind.VIDEO)], return_counts=True
        )
        return dict(zip(units.tolist(), tokens.tolist(), strict=True))

    @property
    def seconds(self) -> int:
        """Seconds of windows that were read."""
        return int(self.state.windows) * self.prefill_config.spec.seconds


def fork(context: Context) -> Context:
    """A copy that shares nothing with its original: feed and ask each as you like."""
    check_usable(context)
    return context.replace(cache=jax.tree.map(jnp.copy, context.cache))


def check_context(params: Params, context: Context) -> None:
    """Raise ``ValueError`` unless the context was read with these weights and is not used up."""
    check_params(params)
    check_usable(context)
    if params.config != context.prefill_config.config or not context.retention.mark.matches(params):
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
