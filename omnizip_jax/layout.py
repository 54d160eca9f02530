"""Static sizes, and the order of tokens: what the drivers, the testbed and the benchmarks share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from omnizip_jax.models.families import Config, family
from omnizip_jax.types import Window

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
