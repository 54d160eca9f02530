"""What the model has read: keys, values, what each slot is, and the one way in for tokens.

A conversation is a sequence of texts and windows. ``append`` packs what is to be kept of a block to
the front, prefills it and describes its slots; clips, windows of a stream, questions and answers
all enter through it or, being text that is kept whole, through ``append_text``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.pack import front
from omnizip_jax.config import WindowSpec
from omnizip_jax.layout import bucket, clip_positions, interleave, padded_text
from omnizip_jax.memory import AUDIO, START, TEXT, VIDEO, Memory, Slots, forget, survivors
from omnizip_jax.models.families import Config, family
from omnizip_jax.models.kernels import Kernels
from omnizip_jax.models.params import Params
from omnizip_jax.models.text import KVCache
from omnizip_jax.prompt import Medium
from omnizip_jax.types import EncodedWindow, Selection, Window


@dataclasses.dataclass(frozen=True)
class Reading:
    """How windows become tokens; static under ``jax.jit``."""

    config: Config
    method: Method
    spec: WindowSpec
    medium: Medium  # what the windows have: sound, pictures, or both
    kernels: Kernels

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
        memory: what leaves a full cache; None lets the cache grow instead.
        low_water: slots that stay in use after the cache was full.
        text_slots: room that windows leave for a question and its answer.
        system: the system prompt.
        mark: tells the weights that the context was read with.
    """

    memory: Memory | None
    low_water: int
    text_slots: int
    system: str
    mark: WeightsMark


class WeightsMark:
    """What tells weights from others: the fingerprint they came with, and a few of their numbers.

    The numbers are fetched from the device only where other weights, or a save, ask for them.
    """

    def __init__(self, params: Params):
        self._leaf = _leaf(params)
        self.fingerprint = params.fingerprint

    @functools.cached_property
    def values(self) -> tuple[float, ...]:
        """A few of the weights."""
        return _values(self._leaf)

    def matches(self, params: Params) -> bool:
        leaf = _leaf(params)
        if leaf is self._leaf and params.fingerprint == self.fingerprint:
            return True
        return self.is_like(params.fingerprint, _values(leaf))

    def is_like(self, fingerprint: str, values: Sequence[float]) -> bool:
        """Whether another mark is of the same weights; those made by hand have no fingerprint."""
        known = {self.fingerprint, fingerprint} - {""}
        return len(known) < 2 and self.values == tuple(values)


def _leaf(params: Params) -> Array:
    return params.weights["text"]["norm"]["scale"]


def _values(leaf: Array) -> tuple[float, ...]:
    return tuple(np.asarray(leaf[:8], np.float32).tolist())


class Past(struct.PyTreeNode):
    """Where a conversation stands.

    Attributes:
        slots: what each slot of the cache belongs to.
        plan: what the method remembers of a stream; None where it looked ahead.
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
    def nothing(cls, slots: int, plan: Any, key: PRNGKeyArray) -> Past:
        """Before the first token."""
        zero = jnp.int32(0)
        return cls(
            slots=Slots.empty(slots),
            plan=plan,
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
    def seconds(self) -> int:
        """Seconds of windows that were read."""
        return int(self.past.windows) * self.reading.spec.seconds


def fork(context: Context) -> Context:
    """A copy that shares nothing with its original: feed and ask each as you like."""
    check_usable(context)
    return context.replace(cache=jax.tree.map(jnp.copy, context.cache))


def check_params(params: Params) -> None:
    """Raise ``ValueError`` unless it is a loaded model."""
    if not isinstance(params, Params):
        raise ValueError(
            f"params must be what omnizip_jax.load returns, got {type(params).__name__}"
        )


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


class Block(struct.PyTreeNode):
    """Tokens on their way into a cache: which of N stay, and what their slots will be."""

    embeddings: Float[Array, "N D"]
    positions: Int[Array, "3 N"]
    keep: Bool[Array, " N"]
    slots: Slots


def append(
    decoder: Any, cache: KVCache, slots: Slots, block: Block, capacity: int, fresh: bool = False
) -> tuple[Float[Array, "C D"], KVCache, Slots, Int[Array, ""]]:
    """Pack a block to the front of ``capacity`` slots, prefill it, and describe its slots.

    Packed tokens, not masks, are what makes a prefill cheap. Tokens that stay keep their positions.

    Args:
        cache: has at least ``capacity`` free slots.
        fresh: the cache is known to be empty.

    Returns:
        Hidden states of the packed block, the cache, the slots, and how many tokens there were to
        keep; what exceeds ``capacity`` is lost, and the caller must say so.
    """
    index, used = front(block.keep, capacity)
    embeddings = jnp.where(used[:, None], block.embeddings[index], 0)
    positions = jnp.where(used, block.positions[:, index], 0)
    slots = slots.write(jax.tree.map(lambda x: x[index], block.slots), cache.length)
    hidden, cache = decoder(embeddings, positions, cache, jnp.sum(used), fresh=fresh)
    return hidden, cache, slots, jnp.sum(block.keep)


def text_block(
    decoder: Any,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    count: Int[Array, ""],
) -> Block:
    """``count`` text tokens, the same position on all axes; their slots are those of a prefix."""
    return Block(
        embeddings=decoder.embed(tokens),
        positions=jnp.broadcast_to(positions, (3, len(tokens))),
        keep=jnp.arange(len(tokens)) < count,
        slots=Slots.empty(len(tokens)),
    )


def join(first: Block, second: Block) -> Block:
    """One block after the other."""
    return Block(
        embeddings=jnp.concatenate([first.embeddings, second.embeddings]),
        positions=jnp.concatenate([first.positions, second.positions], axis=1),
        keep=jnp.concatenate([first.keep, second.keep]),
        slots=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.slots, second.slots),
    )


def media_block(
    decoder: Any,
    reading: Reading,
    past: Past,
    layout: Window,
    encoded: EncodedWindow,
    selection: Selection,
) -> Block:
    """Windows laid out behind the past: start markers if a clip opens, then window after window.

    Args:
        layout: geometry of the windows, leading axis W; so have ``encoded`` and ``selection``.
    """
    spec, markers = reading.spec, jnp.array(reading.markers, jnp.int32)
    count, audio_slots = encoded.audio.token_mask.shape
    cells = encoded.video_mask.shape[-1]
    opens, begin, base = _opening(past)
    video = encoded.video if selection.video is None else selection.video
    audio = encoded.audio.tokens if selection.audio is None else selection.audio
    starts = decoder.embed(markers)

    per_window = spec.grids * cells + audio_slots
    window = jnp.repeat(jnp.arange(count), per_window)
    kind = np.tile(np.repeat([VIDEO, AUDIO], [spec.grids * cells, audio_slots]), count)
    times = begin + window * reading.config.window_positions

    def joined(of_markers: Array | int, of_windows: Array) -> Array:
        start = jnp.broadcast_to(of_markers, (*of_windows.shape[:-1], len(markers)))
        return jnp.concatenate([start.astype(of_windows.dtype), of_windows], axis=-1)

    return Block(
        embeddings=jnp.concatenate([starts, interleave(video, audio).astype(starts.dtype)]),
        positions=joined(
            past.time, clip_positions(layout, begin, base, cells, audio_slots, reading.config)
        ),
        keep=joined(opens, interleave(selection.video_keep, selection.audio_keep)),
        slots=Slots(
            kind=joined(START, jnp.asarray(kind, jnp.int32)),
            unit=joined(past.unit, past.unit + 1 + window),
            time=joined(past.time, times),
            base=joined(base, jnp.broadcast_to(base, times.shape)),
            rank=joined(0, jax.vmap(_ranks)(selection).reshape(-1)),
        ),
    )


def after_media(
    reading: Reading,
    past: Past,
    layout: Window,
    encoded: EncodedWindow,
    selection: Selection,
    last: Int[Array, ""] | int,
) -> Past:
    """The past once windows 0 to ``last`` of a block have entered; slots are the caller's."""
    config, audio, video = reading.config, encoded.audio.token_mask, encoded.video_mask
    opens, begin, base = _opening(past)
    final = jax.tree.map(lambda x: x[last], layout)
    ends = begin + last * config.window_positions
    exists = jnp.any(audio[last]) | jnp.any(video[last])
    after = family(config).position_after(final, audio[last], ends, base)
    return past.replace(
        time=ends + config.window_positions,
        base=base,
        after=jnp.where(exists, after, jnp.where(opens, begin, past.after)),
        unit=past.unit + 2 + last,
        in_video=jnp.bool_(True),
        windows=past.windows + 1 + last,
        seen=past.seen + jnp.stack([jnp.sum(audio), jnp.sum(video)]),
        kept=past.kept + jnp.stack([jnp.sum(selection.audio_keep), jnp.sum(selection.video_keep)]),
    )


def _opening(past: Past) -> tuple[Bool[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Whether a clip opens, where its next window begins, and where its rows count from."""
    opens = ~past.in_video
    begin = past.time + opens
    return opens, begin, jnp.where(opens, begin, past.base)


def _ranks(selection: Selection) -> Float[Array, " slots"]:
    """Place of each token in its window's order of salience, video slots first.

    Audio and each grid are ranked on their own, then spread over as many places as were kept.
    """
    total = jnp.sum(selection.audio_keep) + jnp.sum(selection.video_keep)
    in_grid = jnp.maximum(jnp.sum(selection.video_keep, -1, keepdims=True), 1)
    video = selection.video_order / in_grid
    audio = selection.audio_order / jnp.maximum(jnp.sum(selection.audio_keep), 1)
    return jnp.concatenate([video.reshape(-1), audio]) * total


@functools.partial(jax.jit, static_argnames=("config", "kernels"), donate_argnames="cache")
def append_text(
    weights: Any,
    cache: KVCache,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    count: Int[Array, ""],
    *,
    config: Config,
    kernels: Kernels,
) -> tuple[KVCache, Float[Array, " V"]]:
    """Append ``count`` text tokens to the cache; the logits after the last."""
    decoder = family(config).bound_decoder(weights, config, kernels)
    embeddings = decoder.embed(tokens)
    positions = jnp.broadcast_to(positions, (3, tokens.shape[0]))
    hidden, cache = decoder(embeddings, positions, cache, count)
    return cache, decoder.logits(hidden[count - 1][None])[0]


def remember_text(context: Context, begin: int, end: Int[Array, ""]) -> Context:
    """Make the slots from ``begin`` on one unit of text that ends before position ``end``."""
    past, length = context.past, int(context.cache.length)
    place = jnp.arange(context.capacity)
    new = (place >= begin) & (place < length)

    def mark(old: Array, value: Array | int) -> Array:
        return jnp.where(new, value, old).astype(old.dtype)

    slots = Slots(
        kind=mark(past.slots.kind, TEXT),
        unit=mark(past.slots.unit, past.unit),
        time=mark(past.slots.time, past.after),
        base=mark(past.slots.base, past.after),
        rank=mark(past.slots.rank, 0),
    )
    past = past.replace(
        slots=slots,
        time=end,
        after=end,
        base=end,
        unit=past.unit + 1,
        in_video=jnp.zeros_like(past.in_video),
    )
    return context.replace(past=past, filled=length, reached=int(end))


def open_context(
    params: Params,
    reading: Reading,
    keeping: Keeping,
    prefix: Int[np.ndarray, " P"],
    capacity: int,
    plan: Any,
    seed: int,
) -> Context:
    """Prefill the prompt up to where the first clip, or a question without one, begins."""
    tokens, offsets, count = padded_text(prefix)
    cache = KVCache.empty(
        reading.config.text, capacity, family(reading.config).weights_dtype(params.weights)
    )
    cache, _ = append_text(
        params.weights,
        cache,
        tokens,
        offsets,
        count,
        config=reading.config,
        kernels=reading.kernels,
    )
    past = Past.nothing(capacity, plan, jax.random.key(seed))
    past = past.replace(origin=count, time=count, base=count, after=count)
    return Context(
        cache=cache,
        past=commit(past, cache.length),
        trace=None,
        reading=reading,
        keeping=keeping,
        filled=len(prefix),
        reached=len(prefix),
    )


def make_room(context: Context, slots: int, positions: int) -> Context:
    """Free so many slots and positions: forget, or grow where nothing is ever forgotten.

    Raises:
        ValueError: it cannot be done, or tokens were lost before.
    """
    if _fits(context, slots, positions):
        return context
    context = measured(context)
    if not _fits(context, slots, positions):
        if context.keeping.memory is not None:
            context = measured(thin(context, context.keeping.memory))
        elif _reaches(context, positions):
            context = _grow(context, bucket(context.filled + slots))
    if not _fits(context, slots, positions):
        raise ValueError(
            f"no room for {slots} more tokens: {context.filled} of {context.capacity} slots and "
            f"{context.reached} of {context.reading.config.text.max_positions} positions are in "
            "use and may not be forgotten; take a larger capacity, a lower low_water, or less media"
        )
    return context


def _fits(context: Context, slots: int, positions: int) -> bool:
    return context.filled + slots <= context.capacity and _reaches(context, positions)


def _reaches(context: Context, positions: int) -> bool:
    return context.reached + positions <= context.reading.config.text.max_positions


def measured(context: Context) -> Context:
    """Read from the device how much is in use.

    Raises:
        ValueError: a method kept more than its bound.
    """
    past = context.past
    filled, reached, overflow = jax.device_get(
        (context.cache.length, jnp.maximum(past.time, past.after), past.overflow)
    )
    if overflow > 0:
        raise ValueError(
            f"{context.reading.method} kept {overflow} tokens more than its bound, and they were "
            "lost: its `bound` or `step_bound` is too low"
        )
    return context.replace(filled=int(filled), reached=int(reached))


def _grow(context: Context, capacity: int) -> Context:
    """The same context in a larger cache."""
    more = capacity - context.capacity

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    cache = context.cache
    slots = jax.tree.map(lambda x: pad(x, 0), context.past.slots)
    return context.replace(
        cache=cache.replace(keys=pad(cache.keys, 1), values=pad(cache.values, 1)),
        past=context.past.replace(slots=slots),
    )


def thin(context: Context, memory: Memory) -> Context:
    """Forget down to the low-water mark; the context that is given in is used up."""
    cache, past = _forget(
        context.cache,
        context.past,
        config=context.reading.config,
        memory=memory,
        low_water=context.keeping.low_water,
    )
    return context.replace(cache=cache, past=past)


@functools.partial(
    jax.jit, static_argnames=("config", "memory", "low_water"), donate_argnames="cache"
)
def _forget(
    cache: KVCache, past: Past, *, config: Config, memory: Memory, low_water: int
) -> tuple[KVCache, Past]:
    """Thin the history to the low-water mark and close up the time; only the cache is donated."""
    slots, text = past.slots, config.text
    keep = survivors(
        slots, cache.length, past.time, memory, low_water, span=text.max_positions // 2
    )
    of_video = (slots.kind == START) & (slots.base == past.base)
    cache, slots, now = forget(cache, slots, keep, past.time, past.origin, text)
    return cache, past.replace(
        slots=slots,
        time=now,
        after=jnp.maximum(past.after + now - past.time, past.origin),
        # If nothing of the open video is left, the next window opens one.
        in_video=past.in_video & jnp.any(keep & of_video),
        base=slots.base[cache.length - 1],
    )


def commit(tree: Any, like: Array) -> Any:
    """Put fresh arrays where the model's are; jit would compile again for ones that float."""
    return jax.device_put(tree, like.sharding)
