"""Pixels: the token grid of an image, resizing, and the vision encoder's patches."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_ASPECT = 200  # as in the released image processor


def fit_grid(height: float, width: float, slots: int) -> tuple[int, int]:
    """Rows and columns of tokens for an image: at most ``slots`` tokens, the aspect ratio kept.

    Of all grids that fit, the one with the largest product of the share of slots used and the
    squared match of the aspect ratio. 16:9 gives 9 x 16 at 144 slots. Small images are enlarged:
    the number of tokens does not depend on the resolution.

    Raises:
        ValueError: no area, or sides further apart than 200:1.
    """
    if min(height, width) <= 0 or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"an image of {width:g} x {height:g} pixels cannot be used: expected two positive "
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


def over_white(image: UInt8[np.ndarray, "h w channels"]) -> UInt8[np.ndarray, "h w 3"]:
    """An RGBA image on a white background, as in the released image processor; RGB as it is."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def resize(image: UInt8[np.ndarray, "h w channels"], height: int, width: int) -> np.ndarray:
    """Bicubic, antialiased resize of RGB or RGBA to RGB, as in the released image processor."""
    opaque = Image.fromarray(over_white(image))
    return np.asarray(opaque.resize((width, height), Image.Resampling.BICUBIC))


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
    """Inverse of ``patchify``, padding ignored."""
    used = patches[: rows * columns * merge**2]
    cells = used.reshape(rows, columns, merge, merge, 3, -1, patch, patch)
    frames = cells.transpose(5, 0, 2, 6, 1, 3, 7, 4)
    return frames.reshape(len(frames), rows * merge * patch, columns * merge * patch, 3)
