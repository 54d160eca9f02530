"""The state of a conversation or a stream: KV cache, metadata of its slots, positions, settings."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.novelty_weights import NoveltyState
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.models.backend import Backend, jax_defaults
from omnizip_jax.models.decoder import CACHE_AXES, KVCache
from omnizip_jax.models.loaded_model import Params, check_params, weights_fingerprint
from omnizip_jax.models.registry import Config, family
from omnizip_jax.models.sharding import place
from omnizip_jax.types import Selection, TokenKind
from omnizip_jax.window_spec import WindowSpec

Memory = Literal["recent", "fading"]
DEFAULT_MEMORY: Memory = "fading"  # docs/stream_memory.md has the curve


class SlotMetadata(struct.PyTreeNode):
    """Metadata of every slot of a KV cache, in temporal order.

    Attributes:
        kind: ``TokenKind``. The prefix is never evicted; start tokens leave with the last token
            of their video.
        unit: number of the window, text or start that wrote the slot; ascending along the cache.
        time: position at which its unit begins.
        base: position at which its video begins, after the start tokens, from which rows and
            columns count; for text the same as ``time``. Ascending along the cache.
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
        """Write the metadata of a block of slots that begins at ``start``."""

        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (start,))

        return jax.tree.map(update, self, block)


@dataclasses.dataclass(frozen=True)
class PrefillConfig:
    """Settings under which windows are encoded, compressed and prefilled; static under ``jax.jit``.

    ``dtype`` is that of the computation; ``importance`` computes the importance of streamed tokens,
    for eviction.
    """

    config: Config
    method: Method
    spec: WindowSpec
    modalities: Modalities
    dtype: np.dtype
    cache_dtype: np.dtype
    backend: Backend
    importance: bool = False

    @property
    def markers(self) -> tuple[int, ...]:
        """Start tokens of a clip."""
        return family(self.config).start_markers(
            self.config, self.modalities.audio, self.modalities.video
        )

    @property
    def marker_positions(self) -> int:
        """Positions that the start tokens take."""
        return 1 if family(self.config).MARKERS_SHARE_POSITION else len(self.markers)

    @property
    def window_positions(self) -> int:
        """The most positions that one streamed window takes, start tokens included."""
        return self.config.window_positions + self.marker_positions

    @property
    def window_capacity(self) -> int:
        """Static slots of one streamed window: the most tokens that the method keeps of it."""
        audio = self.spec.audio_slots * self.modalities.audio
        video = self.spec.video_slots * self.modalities.video
        return len(self.markers) + self.method.step_bound(audio, video)


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
    """What a context retains when its cache is full, and what identifies it; host data only.

    Attributes:
        fingerprint: of the weights that wrote the cache.
        memory: eviction policy of a stream; None: no eviction, the cache is resized instead.
        low_water: slots in use after an eviction.
        text_slots: slots that windows leave free for a question and its answer.
    """

    system: str | None
    fingerprint: str
    memory: Memory | None = None
    low_water: int = 0
    text_slots: int = 0


class StreamState(struct.PyTreeNode):
    """Positions, counters and method state of a conversation or a stream; device data.

    Attributes:
        slots: metadata of the cache's slots.
        plan: state of the method in a stream; None for whole clips.
        expected: running statistics from which the importance of tokens follows; None where it is
            not computed.
        key: of methods that sample randomly.
        origin: position right after the prefix of the prompt; 0 before the prefix is written.
        time: position at which the next window, or the next clip, begins.
        base: position from which rows and columns of the open clip count.
        after: position of a text that follows now.
        unit: number of the next unit of the cache.
        in_video: whether a clip is open; the next text closes it.
        windows: windows so far.
        seen, kept: audio and video tokens so far, before and after compression.
        overflow: tokens that a method kept beyond its own bound, and that were dropped.
    """

    slots: SlotMetadata
    plan: Any
    expected: NoveltyState | None
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
        cls, slots: int, key: PRNGKeyArray, plan: Any = None, expected: NoveltyState | None = None
    ) -> StreamState:
        """The state before the first token, for a cache of ``slots``."""
        counters = ("origin", "time", "base", "after", "unit", "windows", "overflow")
        zeros: dict[str, Any] = dict.fromkeys(counters, jnp.int32(0))
        zeros |= dict.fromkeys(("seen", "kept"), jnp.zeros(2, jnp.int32))
        metadata = SlotMetadata.empty(slots)
        return cls(metadata, plan, expected, key, in_video=jnp.bool_(False), **zeros)


class Context(struct.PyTreeNode):
    """A conversation or a stream up to now: passed to and returned by every call.

    Attributes:
        trace: the selection of the last window, or of the windows of the last clip.
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
        capacity: int,
        plan: Any = None,
        expected: NoveltyState | None = None,
    ) -> Context:
        """An empty context with a cache of ``capacity`` slots, which is its final size."""
        cache = KVCache.empty(
            prefill_config.config.text,
            capacity,
            params.cache_dtype,
            sharding=params.sharding(CACHE_AXES),
        )
        state = StreamState.initial(capacity, jax.random.key(seed), plan, expected)
        length, state = place((cache.length, state), params.sharding())
        return cls(cache.replace(length=length), state, None, prefill_config, retention, 0, 0)

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
        """Audio and video tokens before compression."""
        return self.state.seen

    @property
    def kept(self) -> Int[Array, " 2"]:
        """Audio and video tokens that the decoder read, after compression."""
        return self.state.kept

    @property
    def retained(self) -> dict[int, int]:
        """Audio and video tokens in the cache by the unit of their window.

        The unit of the last window is ``state.unit - 1``. Windows without tokens are left out.
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


@jax_defaults()
def fork(context: Context) -> Context:
    """Copy a context, so that ``feed`` and ``ask`` can continue from both independently."""
    check_usable(context)
    return context.replace(cache=jax.tree.map(jnp.copy, context.cache))


def check_context(params: Params, context: Context) -> None:
    """Raise ``ValueError`` unless the context belongs to these weights and is not donated."""
    check_params(params)
    check_usable(context)
    same = context.retention.fingerprint == weights_fingerprint(params)
    if params.config != context.prefill_config.config or not same:
        raise ValueError(
            "this context belongs to another model: use the params that it was created with, or "
            "create a new one"
        )


def check_usable(context: Context) -> None:
    """Raise ``ValueError`` unless it is a context whose cache was not donated to a later call."""
    if not isinstance(context, Context):
        raise ValueError(
            "the context must be what omnizip_jax.read, init_stream or feed returns, got "
            f"{type(context).__name__}"
        )
    if jax.tree.leaves(context.cache)[0].is_deleted():
        raise ValueError(
            "the cache of this state was donated to an earlier feed: continue with the state that "
            "it returned (after an interruption begin a new one; a fork is not affected)"
        )


def commit(tree: Any, like: Array) -> Any:
    """Put new arrays on all devices of ``like``; jit compiles again for uncommitted ones."""
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return place(tree, sharding)
