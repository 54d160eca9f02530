"""Sampled pictures and mel frames to windows, for clips and streams alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.clock import POSITIONS_PER_SECOND, Picture, grid_position
from omnizip_jax.media.pixels import fit_grid, patchify
from omnizip_jax.media.sound import HOP, SAMPLE_RATE
from omnizip_jax.types import Window

_MEL_FOR_TOKEN = 3  # fewer mel frames at the end of a clip do not make an audio token


class Grids:
    """Collects sampled pictures into grids of patches.

    Args:
        slots: tokens that a grid can hold.
        patch, merge: of the vision encoder.
        frames: pictures to a grid.
        limit: samples from this one on are left out.

    Attributes:
        cells: rows and columns of tokens, from the first picture; None before it.
        shape: of the patches of one grid.
        end: grids before this one have been seen.
    """

    def __init__(self, slots: int, patch: int, merge: int, frames: int, limit: int | None = None):
        self.cells: tuple[int, int] | None = None
        self.shape = slots * merge**2, 3 * frames * patch**2
        self.end = 0
        self._slots, self._patch, self._merge, self._count = slots, patch, merge, frames
        self._limit = limit
        self._grids: dict[int, np.ndarray] = {}
        self._frames: dict[int, np.ndarray] = {}  # of the grid at hand
        self._picture, self._pixels = None, np.zeros(0)

    def fit(self, picture: Picture) -> None:
        """Let the first picture decide the cells.

        Raises:
            ValueError: a picture of a shape that cannot be used.
        """
        if self.cells is None:
            self.cells = fit_grid(picture.height, picture.width, self._slots)

    def add(self, samples: list[tuple[int, Picture]]) -> None:
        """Take what a ``FrameSampler`` has decided."""
        for index, picture in samples:
            if self._limit is not None and index >= self._limit:
                return  # the container said that the video is shorter
            self.fit(picture)
            assert self.cells is not None
            if picture is not self._picture:
                rows, columns = self.cells
                side = self._merge * self._patch
                self._picture, self._pixels = picture, picture.render(rows * side, columns * side)
            grid, frame = divmod(index, self._count)
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
        if self._frames:
            first, last = min(self._frames), max(self._frames)
            frames = [self._frames[min(max(i, first), last)] for i in range(self._count)]
            self._grids[self.end - 1] = patchify(np.stack(frames), self._patch, self._merge)
            self._frames = {}


def count_windows(end: int, mel_frames: int, seconds_per_grid: float, spec: WindowSpec) -> int:
    """Windows that it takes for the grids before ``end`` and so many mel frames; at least one."""
    per_window = POSITIONS_PER_SECOND * spec.seconds
    return max(
        1,
        grid_position(end - 1, seconds_per_grid) // per_window + 1 if end else 0,
        -(-(mel_frames - _MEL_FOR_TOKEN + 1) // mel_per_window(spec)),
    )


def mel_per_window(spec: WindowSpec) -> int:
    return SAMPLE_RATE // HOP * spec.seconds


def cut_windows(
    grids: dict[int, np.ndarray],
    mel: Float[np.ndarray, "bins frames"],
    seconds_per_grid: float,
    spec: WindowSpec,
    cells: tuple[int, int] | None,
    shape: tuple[int, int],
    count: int,
    first: int = 0,
) -> Window:
    """Place grids and mel frames into ``count`` windows, numpy leaves with leading axis.

    Args:
        grids: patches of each grid, by its index on the clock; all within these windows.
        mel: features from the start of window ``first`` on.
        seconds_per_grid: time that each grid stands for.
        spec: shape of the windows.
        cells, shape: see ``Grids``.
        count, first: which windows.
    """
    per_window = POSITIONS_PER_SECOND * spec.seconds
    bins, length = mel.shape
    frames = mel_per_window(spec)
    patches = np.zeros((count, spec.grids, *shape), np.uint8)
    mask = np.zeros((count, spec.grids), bool)
    time = np.tile(np.arange(spec.grids) * per_window // spec.grids, (count, 1))
    for grid, values in grids.items():
        window, offset = divmod(grid_position(grid, seconds_per_grid), per_window)
        window -= first
        slot = mask[window].sum()
        patches[window, slot, : len(values)] = values
        mask[window, slot] = True
        time[window, slot] = offset

    padded = np.zeros((bins, count * frames), np.float32)
    used = min(length, padded.shape[1])
    padded[:, :used] = mel[:, :used]
    leaves: dict[str, Any] = {  # numpy here; arrays of the device once they are used
        "patches": patches,
        "grid_size": np.tile(np.array(cells or (1, 1), np.int32), (count, 1)),
        "grid_mask": mask,
        "grid_time": time.astype(np.int32),
        "mel": np.ascontiguousarray(padded.reshape(bins, count, -1).transpose(1, 0, 2)),
        "mel_length": np.clip(used - frames * np.arange(count), 0, frames).astype(np.int32),
    }
    return Window(**leaves)
