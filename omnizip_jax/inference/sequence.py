"""Layout of windows and text for the decoder: static sizes, order, embeddings and positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.pack import front
from omnizip_jax.inference.context import PrefillConfig, SlotMetadata, StreamState
from omnizip_jax.models.registry import Config, family
from omnizip_jax.types import EncodedClip, Selection, TokenKind, Window

ENCODE_BLOCK = 8  # windows per encoder dispatch
TEXT_BLOCK = 32  # texts are padded to a multiple of this


def bucket(size: int, smallest: int = 64) -> int:
    """Round up to one of eight sizes an octave, so that few programs serve all lengths."""
    if size <= smallest:
        return smallest
    step = 1 << max((size - 1).bit_length() - 4, 0)
    return -(-size // step) * step


def padded_length(windows: int) -> int:
    """Windows that a clip is padded to: its length bucket, in whole blocks of the encoders."""
    total = bucket(windows, smallest=ENCODE_BLOCK)
    return total + -total % ENCODE_BLOCK


def pad_windows(windows: Window, total: int) -> Window:
    """Append empty windows up to ``total``."""

    def pad(x: Array | np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, total - len(x))] + [(0, 0)] * (np.ndim(x) - 1))

    return jax.tree.map(pad, windows)


def geometry(windows: Window) -> Window:
    """The windows without their content: what positions are made of."""
    return windows.replace(patches=None, mel=None)


def token_counts(
    windows: Window, config: Config
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Audio and video tokens of every window, on the host."""
    audio = family(config).audio_tokens(np.asarray(windows.mel_length))
    video = np.asarray(windows.grid_mask).sum(1) * np.asarray(windows.grid_size).prod(1)
    return audio, video


def interleave(video: Array, audio: Array) -> Array:
    """Lay out a clip: window after window, in each its video grids, then its audio."""
    windows, grids, cells = video.shape[:3]
    video = video.reshape(windows, grids * cells, *video.shape[3:])
    both = jnp.concatenate([video, audio], axis=1)
    return both.reshape(-1, *both.shape[2:])


def clip_positions(
    layout: Window,
    time: Int[Array, ""] | int,
    base: Int[Array, ""] | int,
    cells: int,
    sounds: int,
    config: Config,
) -> Int[Array, "3 slots"]:
    """Positions of every slot of a clip's windows, as ``interleave`` lays them out.

    Args:
        layout: the windows' geometry, leading axis W.
        time: position at which the first of them begins.
        base: position from which rows and columns count.
        cells, sounds: slots of a grid, and of a window's audio.
    """

    def of_window(window: Window, index: Array) -> Array:
        begins = time + index * config.window_positions
        return family(config).window_positions(window, begins, base, cells, sounds)

    positions = jax.vmap(of_window)(layout, jnp.arange(len(layout.grid_size)))
    return positions.transpose(1, 0, 2).reshape(3, -1)


class PaddedText(NamedTuple):
    """A text in whole blocks: tokens, their positions from where it begins, how many are real."""

    tokens: Int[Array, " P"]
    offsets: Int[Array, " P"]
    count: Int[Array, ""]


def padded_text(
    tokens: Int[np.ndarray, " T"], offsets: Int[np.ndarray, " T"] | None = None
) -> PaddedText:
    """Fill up the last block; offsets count from 0 by default."""
    length = len(tokens)
    offsets = np.arange(length, dtype=np.int32) if offsets is None else offsets
    padding = (0, -length % TEXT_BLOCK)
    return PaddedText(
        jnp.asarray(np.pad(tokens, padding), jnp.int32),
        jnp.asarray(np.pad(offsets, padding), jnp.int32),
        jnp.int32(length),
    )


class TokenSequence(struct.PyTreeNode):
    """Tokens on their way into a cache: which of N stay, and what their slots will be."""

    embeddings: Float[Array, "N D"]
    positions: Int[Array, "3 N"]
    keep: Bool[Array, " N"]
    slots: SlotMetadata

    def packed(self, capacity: int) -> tuple[TokenSequence, Int[Array, ""]]:
        """What stays, in front of ``capacity`` slots, and zeros behind.

        Packed tokens, not masks, are what makes a prefill cheap. Tokens that stay keep their
        positions.

        Returns:
            The block, in which ``keep`` says what slots are used, and how many tokens were beyond
            ``capacity``: they are lost, and the caller must say so.
        """
        index, used = front(self.keep, capacity)
        packed = TokenSequence(
            embeddings=jnp.where(used[:, None], self.embeddings[index], 0),
            positions=jnp.where(used, self.positions[:, index], 0),
            keep=used,
            slots=jax.tree.map(lambda x: x[index], self.slots),
        )
        return packed, jnp.maximum(jnp.sum(self.keep) - capacity, 0)


def text_block(decoder: Any, text: PaddedText, start: Int[Array, ""] | int) -> TokenSequence:
    """A text from a position on, the same on all axes; its slots are those of a prefix."""
    size = len(text.tokens)
    return TokenSequence(
        embeddings=decoder.embed(text.tokens),
        positions=jnp.broadcast_to(start + text.offsets, (3, size)),
        keep=jnp.arange(size) < text.count,
        slots=SlotMetadata.empty(size),
    )


def join(first: TokenSequence, second: TokenSequence) -> TokenSequence:
    """One block after the other."""
    return TokenSequence(
        embeddings=jnp.concatenate([first.embeddings, second.embeddings]),
        positions=jnp.concatenate([first.positions, second.positions], axis=1),
        keep=jnp.concatenate([first.keep, second.keep]),
        slots=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.slots, second.slots),
    )


def media_block(
    decoder: Any,
    prefill_config: PrefillConfig,
    state: StreamState,
    clip: EncodedClip,
    selection: Selection,
    importance: tuple[Float[Array, "W A"], Float[Array, "W G P"]] | None = None,
) -> TokenSequence:
    """Windows laid out behind the past: start markers if a clip opens, then window after window.

    Args:
        importance: of the audio and the video tokens, for a stream that forgets; None: all alike.
    """
    encoded = clip.windows
    spec, markers = prefill_config.spec, jnp.array(prefill_config.markers, jnp.int32)
    count, audio_slots = encoded.audio.token_mask.shape
    cells = encoded.video_mask.shape[-1]
    opens, begin, base = _opening(state)
    video = encoded.video if selection.video is None else selection.video
    audio = encoded.audio.tokens if selection.audio is None else selection.audio
    starts = decoder.embed(markers)

    per_window = spec.grids * cells + audio_slots
    window = jnp.repeat(jnp.arange(count), per_window)
    kind = np.tile(
        np.repeat([TokenKind.VIDEO, TokenKind.AUDIO], [spec.grids * cells, audio_slots]), count
    )
    times = begin + window * prefill_config.config.window_positions

    def joined(of_markers: Array | int, of_windows: Array) -> Array:
        start = jnp.broadcast_to(of_markers, (*of_windows.shape[:-1], len(markers)))
        return jnp.concatenate([start.astype(of_windows.dtype), of_windows], axis=-1)

    return TokenSequence(
        embeddings=jnp.concatenate([starts, interleave(video, audio).astype(starts.dtype)]),
        positions=joined(
            state.time,
            clip_positions(clip.layout, begin, base, cells, audio_slots, prefill_config.config),
        ),
        keep=joined(opens, interleave(selection.video_keep, selection.audio_keep)),
        slots=SlotMetadata(
            kind=joined(TokenKind.START, jnp.asarray(kind, jnp.int32)),
            unit=joined(state.unit, state.unit + 1 + window),
            time=joined(state.time, times),
            base=joined(base, jnp.broadcast_to(base, times.shape)),
            importance=joined(
                1,
                jnp.ones(len(times))
                if importance is None
                else interleave(importance[1], importance[0]),
            ),
        ),
    )


def after_media(
    prefill_config: PrefillConfig, state: StreamState, clip: EncodedClip, selection: Selection
) -> StreamState:
    """The past once the windows of a block have entered; its slots are left to ``append``."""
    config, last = prefill_config.config, clip.last
    audio, video = clip.windows.audio.token_mask, clip.windows.video_mask
    opens, begin, base = _opening(state)
    final = jax.tree.map(lambda x: x[last], clip.layout)
    ends = begin + last * config.window_positions
    exists = jnp.any(audio[last]) | jnp.any(video[last])
    after = family(config).position_after(final, audio[last], ends, base)
    return state.replace(
        time=ends + config.window_positions,
        base=base,
        after=jnp.where(exists, after, jnp.where(opens, begin, state.after)),
        unit=state.unit + 2 + last,
        in_video=jnp.bool_(True),
        windows=state.windows + 1 + last,
        seen=state.seen + jnp.stack([jnp.sum(audio), jnp.sum(video)]),
        kept=state.kept + jnp.stack([jnp.sum(selection.audio_keep), jnp.sum(selection.video_keep)]),
    )


def _opening(state: StreamState) -> tuple[Bool[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Whether a clip opens, where its next window begins, and where its rows count from."""
    opens = ~state.in_video
    begin = state.time + opens
    return opens, begin, jnp.where(opens, begin, state.base)
