"""Sampled pictures and mel frames to windows, for clips and streams alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.clock import Picture, grid_position
from omnizip_jax.media.pixels import fit_grid, patchify
from omnizip_jax.types import Window

_MEL_FOR_TOKEN = 3  # fewer mel frames at the end of a clip do not make an audio token


class Grids:
    """Collects sampled pictures into grids of patches.

    Args:
        spec: shape of the windows.
        limit: samples from this one on are left out.

    Attributes:
        cells: rows and columns of tokens, from the first picture; None before it.
        end: grids before this one have been seen.
    """

    def __init__(self, spec: WindowSpec, limit: int | None = None):
        self.cells: tuple[int, int] | None = None
        self.end = 0
        self._spec, self._limit = spec, limit
        self._grids: dict[int, np.ndarray] = {}
        self._frames: dict[int, np.ndarray] = {}  # of the grid at hand
        self._picture, self._pixels = None, np.zeros(0)

    def fit(self, picture: Picture) -> None:
        """Let the first picture decide the cells.

        Raises:
            ValueError: a picture of a shape that cannot be used.
        """
        if self.cells is None:
            self.cells = fit_grid(picture.height, picture.width, self._spec.grid_slots)

    def add(self, samples: list[tuple[int, Picture]]) -> None:
        """Take what a ``FrameSampler`` has decided."""
        for index, picture in samples:
            if self._limit is not None and index >= self._limit:
                return  # the container said that the video is shorter
            self.fit(picture)
            assert self.cells is not None
            if picture is not self._picture:
                rows, columns = self.cells
                side = self._spec.merge * self._spec.patch
                self._picture, self._pixels = picture, picture.render(rows * side, columns * side)
            grid, frame = divmod(index, self._spec.temporal_patch)
            if grid >= self.end:
                self._close()
                self.end = grid + 1
            self._frames[frame] = self._pixels

    def take(self, before: float = np.inf) -> dict[int, np.ndarray]:
        """Patches of each grid before this one, by its index on the clock; they are handed over."""
        if self.end <= before:
            self._close()
        return {grid: self._grids.pop(grid) for grid in sorted(self._grids) if grid < before}

    def _close(self) -> None:
        spec = self._spec
        if self._frames:
            first, last = min(self._frames), max(self._frames)
            frames = [self._frames[min(max(i, first), last)] for i in range(spec.temporal_patch)]
            self._grids[self.end - 1] = patchify(np.stack(frames), spec.patch, spec.merge)
            self._frames = {}


def count_windows(end: int, mel_frames: int, seconds_per_grid: float, spec: WindowSpec) -> int:
    """Windows that it takes for the grids before ``end`` and so many mel frames; at least one."""
    last = grid_position(end - 1, seconds_per_grid, spec.positions_per_second)
    return max(
        1,
        last // spec.positions + 1 if end else 0,
        -(-(mel_frames - _MEL_FOR_TOKEN + 1) // spec.mel_frames),
    )


def cut_windows(
    grids: dict[int, np.ndarray],
    mel: Float[np.ndarray, "bins frames"],
    seconds_per_grid: float,
    spec: WindowSpec,
    cells: tuple[int, int] | None,
    count: int,
    first: int = 0,
) -> Window:
    """Place grids and mel frames into ``count`` windows, numpy leaves with leading axis.

    Args:
        grids: patches of each grid, by its index on the clock; all within these windows. They are
            taken out one by one, as a long clip has no room for them twice.
        mel: features from the start of window ``first`` on.
        seconds_per_grid: time that each grid stands for.
        spec: shape of the windows.
        cells: see ``Grids``.
        count, first: which windows.
    """
    windows = Window.empty(spec, count)
    bins, length = mel.shape
    # Pages of zeros that are never written to take no memory.
    patches = np.zeros(windows.patches.shape, np.uint8) if grids else windows.patches
    mask, time = np.asarray(windows.grid_mask), np.asarray(windows.grid_time)
    for grid in sorted(grids):
        values = grids.pop(grid)
        position = grid_position(grid, seconds_per_grid, spec.positions_per_second)
        window, offset = divmod(position, spec.positions)
        window -= first
        slot = mask[window].sum()
        patches[window, slot, : len(values)] = values
        mask[window, slot] = True
        time[window, slot] = offset

    frames = spec.mel_frames
    padded = np.zeros((bins, count * frames), np.float32)
    used = min(length, padded.shape[1])
    padded[:, :used] = mel[:, :used]
    leaves: dict[str, Any] = {  # numpy here; arrays of the device once they are used
        "patches": patches,
        "grid_size": np.tile(np.array(cells or (1, 1), np.int32), (count, 1)),
        "mel": np.ascontiguousarray(padded.reshape(bins, count, -1).transpose(1, 0, 2)),
        "mel_length": np.clip(used - frames * np.arange(count), 0, frames).astype(np.int32),
    }
    return windows.replace(**leaves)
