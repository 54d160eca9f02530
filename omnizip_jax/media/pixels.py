"""Pictures: the size that fits a grid, resizing, and cutting into the vision encoder's patches."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_ASPECT = 200  # as the released image processor


def fit_grid(height: float, width: float, slots: int) -> tuple[int, int]:
    """Rows and columns of tokens for a picture: at most ``slots`` of them, the aspect kept.

    Of all grids that fit, the one with the best share of slots used times match of aspect
    squared. 16:9 gives 9 x 16 at 144 slots. Small pictures are enlarged: the number of tokens
    does not depend on the resolution.

    Raises:
        ValueError: no area, or sides further apart than 200:1.
    """
    if min(height, width) <= 0 or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"a picture of {width:g} x {height:g} pixels cannot be used: expected two positive "
            f"sides no further apart than {MAX_ASPECT}:1; crop or pad it first"
        )

    def quality(grid):
        rows, columns = grid
        match = (rows * width) / (columns * height)
        return rows * columns / slots * min(match, 1 / match) ** 2

    candidates = [
        (rows, min(columns, slots // rows))
        for rows in range(1, slots + 1)
        for columns in (max(1, int(rows * width / height)), int(rows * width / height) + 1)
    ]
    return max(candidates, key=quality)


def resize(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> np.ndarray:
    """Bicubic and antialiased, as the released image processor does."""
    image = Image.fromarray(picture)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def patchify(
    frames: UInt8[np.ndarray, "frames h w 3"], patch: int, merge: int
) -> UInt8[np.ndarray, "patches values"]:
    """Cut the frames of one grid into patches, in the vision encoder's order.

    Tokens are row-major over cells of ``merge x merge`` patches, patches row-major in their
    token; a patch is laid out channel, frame, row, column.
    """
    count, height, width, channels = frames.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    cells = frames.reshape(count, rows, merge, patch, columns, merge, patch, channels)
    ordered = cells.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return ordered.reshape(rows * columns * merge**2, channels * count * patch**2)


def unpatchify(
    patches: UInt8[np.ndarray, "patches values"], rows: int, columns: int, patch: int, merge: int
) -> UInt8[np.ndarray, "frames h w 3"]:
    """The frames of one grid again: the inverse of ``patchify``, padding ignored."""
    used = patches[: rows * columns * merge**2]
    cells = used.reshape(rows, columns, merge, merge, 3, -1, patch, patch)
    frames = cells.transpose(5, 0, 2, 6, 1, 3, 7, 4)
    return frames.reshape(len(frames), rows * merge * patch, columns * merge * patch, 3)
