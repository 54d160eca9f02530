"""Layout of text and windows for the decoder: static sizes, token order, embeddings, positions."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.decoder_stages import front
from omnizip_jax.inference.context import PrefillConfig, SlotMetadata, StreamState
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import EncodedClip, Selection, TokenKind, Window

TEXT_BUCKETS = (64, 256, 512)  # then multiples of the last
WINDOW_BUCKETS = (16, 64)  # then multiples of the last
CACHE_BUCKETS = (8192, 16384)  # slots; then multiples of the last


def bucket(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest of a few static sizes that holds ``size``: one program serves many lengths."""
    return next((each for each in sizes if size <= each), -(-size // sizes[-1]) * sizes[-1])


def fine_bucket(size: int) -> int:
    """Round up to one of eight sizes an octave, at least 64, where padding costs computation."""
    if size <= 64:
        return 64
    step = 1 << max((size - 1).bit_length() - 4, 0)
    return -(-size // step) * step


def pad_windows(windows: Window, total: int) -> Window:
    """Append empty windows up to ``total``."""

    def pad(x: Array | np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, total - len(x))] + [(0, 0)] * (np.ndim(x) - 1))

    return jax.tree.map(pad, windows)


def geometry(windows: Window) -> Window:
    """The windows without pixels and mel: what positions are computed from."""
    return windows.replace(patches=None, mel=None)


def token_counts(
    windows: Window, config: Config
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Audio and video tokens of every window, on the host."""
    audio = family(config).audio_tokens(np.asarray(windows.mel_length))
    video = np.asarray(windows.grid_mask).sum(1) * np.asarray(windows.grid_size).prod(1)
    return audio, video


def slots_of(video: Array, audio: Array) -> Array:
    """The slots of a clip: window after window, in each those of its grids, then of its audio."""
    windows, grids, cells = video.shape[:3]
    video = video.reshape(windows, grids * cells, *video.shape[3:])
    both = jnp.concatenate([video, audio], axis=1)
    return both.reshape(-1, *both.shape[2:])


def slot_order(
    layout: Window, cells: int, audio_slots: int, config: Config
) -> Int[Array, " slots"] | None:
    """The slots of a clip in the order of the sequence; None: as they are.

    Args:
        layout: the windows' geometry, leading axis W.
        cells, audio_slots: slots of a grid, and of a window's audio.
    """
    order = family(config).token_order
    if order is None:
        return None
    each = jax.vmap(lambda window: order(window, cells, audio_slots))(layout)
    return (each + each.shape[1] * jnp.arange(len(each))[:, None]).reshape(-1)


def clip_positions(
    layout: Window,
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
    cells: int,
    audio_slots: int,
    config: Config,
) -> Int[Array, "3 slots"]:
    """Positions of the slots of a clip's windows.

    Args:
        layout: the windows' geometry, leading axis W.
        time: position at which the first of them begins.
        base: position from which rows and columns count.
        cells, audio_slots: slots of a grid, and of a window's audio.
    """

    def of_window(window: Window, index: Array) -> Array:
        begin = time + index * config.window_positions
        return family(config).window_positions(window, begin, base, cells, audio_slots)

    positions = jax.vmap(of_window)(layout, jnp.arange(len(layout.grid_size)))
    return positions.transpose(1, 0, 2).reshape(3, -1)


class PaddedText(NamedTuple):
    """Text tokens padded to a bucket, their positions relative to the first, and their number."""

    tokens: Int[Array, " P"]
    offsets: Int[Array, " P"]
    count: Int[Array, ""]

    @property
    def end(self) -> Int[Array, ""]:
        """The position after the last token, relative to the first; 0 without tokens."""
        last = self.offsets[jnp.maximum(self.count - 1, 0)]
        return jnp.where(self.count > 0, last + 1, 0)


def pad_text(
    tokens: Int[np.ndarray, " T"],
    offsets: Int[np.ndarray, " T"] | None = None,
    limit: int | None = None,
) -> PaddedText:
    """Pad text tokens, by default at consecutive positions, to a bucket of at most ``limit``."""
    length = len(tokens)
    offsets = np.arange(length, dtype=np.int32) if offsets is None else offsets
    size = bucket(length, TEXT_BUCKETS)
    padding = (0, (size if limit is None else min(size, limit)) - length)
    return PaddedText(
        jnp.asarray(np.pad(tokens, padding), jnp.int32),
        jnp.asarray(np.pad(offsets, padding), jnp.int32),
        jnp.int32(length),
    )


class TokenSequence(struct.PyTreeNode):
    """N tokens laid out for the decoder; embeddings are not copied until tokens are gathered.

    Attributes:
        sources: embeddings of texts and of encoded windows, in any order.
        row: row of each token in the concatenation of the sources.
        deepstack: of each source of video tokens, in families that have it; otherwise None.
        positions: TMRoPE positions (time, height, width).
        keep: tokens that enter the cache.
        slots: metadata of the slots that they will occupy.
    """

    sources: tuple[Float[Array, "_ D"], ...]
    row: Int[Array, " N"]
    positions: Int[Array, "3 N"]
    keep: Bool[Array, " N"]
    slots: SlotMetadata
    deepstack: tuple[Float[Array, "W K R D"] | None, ...]

    @property
    def embeddings(self) -> Float[Array, "N D"]:
        """The embeddings of all tokens, copied from the sources."""
        out, begin = jnp.take(self.sources[0], self.row, axis=0, mode="clip"), 0
        for before, source in itertools.pairwise(self.sources):
            begin += len(before)
            found = jnp.take(source, self.row - begin, axis=0, mode="clip")
            out = jnp.where((self.row < begin)[:, None], out, found)
        return out

    @property
    def deepstack_rows(self) -> Float[Array, "K N D"] | None:
        """Rows for each of the decoder's first K layers, zeros except for video tokens."""
        out, begin = None, 0
        for source, rows in zip(self.sources, self.deepstack, strict=True):
            if rows is not None:
                window, cell = jnp.divmod(self.row - begin, rows.shape[2])
                own = (self.row >= begin) & (self.row < begin + len(source))
                found = jnp.moveaxis(rows.at[window, :, cell].get(mode="clip"), 1, 0)
                out = jnp.where(own[:, None], found, 0 if out is None else out)
            begin += len(source)
        return out

    def gather(self, index: Int[Array, " T"], used: Bool[Array, " T"]) -> TokenSequence:
        """The tokens at ``index`` with embeddings of their own, zeros where a slot is not used."""
        chosen = self.replace(row=self.row[index])
        deepstack = chosen.deepstack_rows
        if deepstack is not None:
            deepstack = jnp.where(used[:, None], deepstack, 0)[None]
        return TokenSequence(
            sources=(jnp.where(used[:, None], chosen.embeddings, 0),),
            row=jnp.arange(len(index)),
            positions=jnp.where(used, self.positions[:, index], 0),
            keep=used,
            slots=jax.tree.map(lambda x: x[index], self.slots),
            deepstack=(deepstack,),
        )

    def packed(self, capacity: int) -> tuple[TokenSequence, Int[Array, ""]]:
        """The kept tokens in the first of ``capacity`` slots, and the number of those beyond it.

        The caller must report the latter, which are dropped; ``keep`` marks the used slots.
        """
        index, used = front(self.keep, capacity)
        return self.gather(index, used), jnp.maximum(jnp.sum(self.keep) - capacity, 0)


def concatenate(*sequences: TokenSequence) -> TokenSequence:
    """One sequence after the other, with the sources of all."""
    rows, begin = [], 0
    for each in sequences:
        rows.append(begin + each.row)
        begin += sum(map(len, each.sources))
    return TokenSequence(
        sources=sum((each.sources for each in sequences), ()),
        row=jnp.concatenate(rows),
        positions=jnp.concatenate([each.positions for each in sequences], axis=1),
        keep=jnp.concatenate([each.keep for each in sequences]),
        slots=jax.tree.map(lambda *x: jnp.concatenate(x), *(each.slots for each in sequences)),
        deepstack=sum((each.deepstack for each in sequences), ()),
    )


def text_sequence(decoder: Any, text: PaddedText, state: StreamState) -> TokenSequence:
    """A text at ``state.after``, at one position on all axes: the prefix if it is the first."""
    size = len(text.tokens)

    def filled(value: Array | int) -> Array:
        return jnp.broadcast_to(jnp.int32(value), size)

    kind = jnp.where(state.origin == 0, TokenKind.PREFIX, TokenKind.TEXT)
    begin = jnp.where(state.origin == 0, 0, state.after)
    return TokenSequence(
        sources=(decoder.embed(text.tokens),),
        row=jnp.arange(size),
        positions=jnp.broadcast_to(state.after + text.offsets, (3, size)),
        keep=jnp.arange(size) < text.count,
        slots=SlotMetadata(
            filled(kind), filled(state.unit), filled(begin), filled(begin), jnp.ones(size)
        ),
        deepstack=(None,),
    )


def state_after_text(state: StreamState, text: PaddedText) -> StreamState:
    """The state once a text has been appended; unchanged by an empty one."""
    end, first, exists = state.after + text.end, state.origin == 0, text.count > 0
    return state.replace(
        origin=jnp.where(first, end, state.origin),
        time=jnp.where(exists, end, state.time),
        base=jnp.where(exists, end, state.base),
        after=end,
        unit=state.unit + (exists & ~first),
        in_video=state.in_video & ~exists,
    )


def window_sequence(
    decoder: Any,
    prefill_config: PrefillConfig,
    state: StreamState,
    clip: EncodedClip,
    selection: Selection,
    importance: tuple[Float[Array, "W A"], Float[Array, "W G P"]] | None = None,
) -> TokenSequence:
    """Windows that follow ``state``: start tokens if a clip opens, then window after window.

    Args:
        importance: of the audio and the video tokens, for eviction; None: all equal.
    """
    encoded, config = clip.windows, prefill_config.config
    markers = jnp.array(prefill_config.markers, jnp.int32)
    count, audio_slots = encoded.audio.token_mask.shape
    grids, cells = encoded.video_mask.shape[1:]
    opens, begin, base = _opening(prefill_config, state)
    video = encoded.video if selection.video is None else selection.video
    audio = encoded.audio.tokens if selection.audio is None else selection.audio
    starts = decoder.embed(markers)

    window = jnp.repeat(jnp.arange(count), grids * cells + audio_slots)
    kinds = np.repeat([TokenKind.VIDEO, TokenKind.AUDIO], [grids * cells, audio_slots])
    times = begin + window * config.window_positions
    order = slot_order(clip.layout, cells, audio_slots, config)

    def joined(of_markers: Array | int, of_slots: Array) -> Array:
        start = jnp.broadcast_to(of_markers, (*of_slots.shape[:-1], len(markers)))
        of_slots = of_slots if order is None else of_slots[..., order]
        return jnp.concatenate([start.astype(of_slots.dtype), of_slots], axis=-1)

    weights = jnp.ones(len(times)) if importance is None else slots_of(*importance[::-1])
    media = [x.reshape(-1, x.shape[-1]).astype(starts.dtype) for x in (video, audio)]
    rows = len(markers) + jnp.arange(sum(map(len, media)))
    of_video, of_audio = jnp.split(rows, [len(media[0])])
    of_media = slots_of(of_video.reshape(video.shape[:-1]), of_audio.reshape(audio.shape[:-1]))
    offsets = 0 if prefill_config.marker_positions == 1 else jnp.arange(len(markers))
    deepstack = encoded.deepstack
    if deepstack is not None:
        deepstack = deepstack.reshape(*deepstack.shape[:2], -1, deepstack.shape[-1])
    return TokenSequence(
        sources=(starts, *media),
        row=joined(jnp.arange(len(markers)), of_media),
        positions=joined(
            state.time + offsets,
            clip_positions(clip.layout, begin, base, cells, audio_slots, config),
        ),
        keep=joined(opens, slots_of(selection.video_keep, selection.audio_keep)),
        slots=SlotMetadata(
            kind=joined(TokenKind.START, jnp.asarray(np.tile(kinds, count), jnp.int32)),
            unit=joined(state.unit, state.unit + 1 + window),
            time=joined(state.time, times),
            base=joined(base, jnp.broadcast_to(base, times.shape)),
            importance=joined(1, weights),
        ),
        deepstack=(None, deepstack, None),
    )


def state_after_windows(
    prefill_config: PrefillConfig, state: StreamState, clip: EncodedClip, selection: Selection
) -> StreamState:
    """The state once the windows of ``window_sequence`` have been appended."""
    config, last = prefill_config.config, clip.last
    audio, video = clip.windows.audio.token_mask, clip.windows.video_mask
    opens, begin, base = _opening(prefill_config, state)
    # Text follows the last window with content: empty ones after it have no positions.
    filled = jnp.any(audio, 1) | jnp.any(video, (1, 2))
    final = jnp.max(jnp.where(filled, jnp.arange(len(filled), dtype=jnp.int32), 0))
    layout = jax.tree.map(lambda x: x[final], clip.layout)
    start = begin + final * config.window_positions
    after = family(config).position_after(layout, audio[final], start, base)
    kept = selection.audio_keep, selection.video_keep
    return state.replace(
        time=begin + (last + 1) * config.window_positions,
        base=base,
        after=jnp.where(jnp.any(filled), after, jnp.where(opens, begin, state.after)),
        unit=state.unit + 2 + last,
        in_video=jnp.bool_(True),
        windows=state.windows + 1 + last,
        seen=state.seen + jnp.stack([jnp.sum(audio), jnp.sum(video)]),
        kept=state.kept + jnp.stack([jnp.sum(each) for each in kept]),
    )


def _opening(
    prefill_config: PrefillConfig, state: StreamState
) -> tuple[Bool[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Whether a clip opens, where its next window begins, and where its rows count from."""
    opens = ~state.in_video
    begin = state.time + opens * prefill_config.marker_positions
    return opens, begin, jnp.where(opens, begin, state.base)
