"""Texts and windows laid out for the decoder: embeddings, positions, what stays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.pack import front
from omnizip_jax.context import Past, Reading
from omnizip_jax.layout import PaddedText, clip_positions, interleave
from omnizip_jax.memory import AUDIO, START, VIDEO, Slots
from omnizip_jax.models.families import family
from omnizip_jax.types import EncodedClip, Selection


class Block(struct.PyTreeNode):
    """Tokens on their way into a cache: which of N stay, and what their slots will be."""

    embeddings: Float[Array, "N D"]
    positions: Int[Array, "3 N"]
    keep: Bool[Array, " N"]
    slots: Slots

    def packed(self, capacity: int) -> tuple[Block, Int[Array, ""]]:
        """What stays, in front of ``capacity`` slots, and zeros behind.

        Packed tokens, not masks, are what makes a prefill cheap. Tokens that stay keep their
        positions.

        Returns:
            The block, in which ``keep`` says what slots are used, and how many tokens were beyond
            ``capacity``: they are lost, and the caller must say so.
        """
        index, used = front(self.keep, capacity)
        packed = Block(
            embeddings=jnp.where(used[:, None], self.embeddings[index], 0),
            positions=jnp.where(used, self.positions[:, index], 0),
            keep=used,
            slots=jax.tree.map(lambda x: x[index], self.slots),
        )
        return packed, jnp.maximum(jnp.sum(self.keep) - capacity, 0)


def text_block(decoder: Any, text: PaddedText, start: Int[Array, ""] | int) -> Block:
    """A text from a position on, the same on all axes; its slots are those of a prefix."""
    size = len(text.tokens)
    return Block(
        embeddings=decoder.embed(text.tokens),
        positions=jnp.broadcast_to(start + text.offsets, (3, size)),
        keep=jnp.arange(size) < text.count,
        slots=Slots.empty(size),
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
    clip: EncodedClip,
    selection: Selection,
    worth: tuple[Float[Array, "W A"], Float[Array, "W G P"]] | None = None,
) -> Block:
    """Windows laid out behind the past: start markers if a clip opens, then window after window.

    Args:
        worth: of the audio and the video tokens, for a stream that forgets; None: all alike.
    """
    encoded = clip.windows
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
            past.time, clip_positions(clip.layout, begin, base, cells, audio_slots, reading.config)
        ),
        keep=joined(opens, interleave(selection.video_keep, selection.audio_keep)),
        slots=Slots(
            kind=joined(START, jnp.asarray(kind, jnp.int32)),
            unit=joined(past.unit, past.unit + 1 + window),
            time=joined(past.time, times),
            base=joined(base, jnp.broadcast_to(base, times.shape)),
            worth=joined(
                1, jnp.ones(len(times)) if worth is None else interleave(worth[1], worth[0])
            ),
        ),
    )


def after_media(reading: Reading, past: Past, clip: EncodedClip, selection: Selection) -> Past:
    """The past once the windows of a block have entered; its slots are left to ``append``."""
    config, last = reading.config, clip.last
    audio, video = clip.windows.audio.token_mask, clip.windows.video_mask
    opens, begin, base = _opening(past)
    final = jax.tree.map(lambda x: x[last], clip.layout)
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
