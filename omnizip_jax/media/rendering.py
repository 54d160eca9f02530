"""Decoded video frames to RGB pixels as a player shows them: upright, and over white."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import Interpolation
from PIL import Image

from omnizip_jax.media.pixels import resize

# swscale's bicubic is antialiased; without the other flags it rounds coarsely and halves the
# resolution of colour. Scaling and conversion to RGB in one step agree with RGB at full size
# resized by Pillow to 0.1-0.4 of 255 levels on average, at a fifth of the time.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_side_data: Any = SideDataContainer  # whose stub has no constructor
_UPRIGHT = np.eye(2)
_UNKNOWN_TO_PYAV = range(28, 36)  # types of side data, EXIF among them, that PyAV fails on


class Picture:
    """A decoded frame as it is displayed.

    Args:
        frame: as decoded.
        aspect: width of its pixels divided by their height.

    Attributes:
        height, width: upright, in square pixels.
    """

    def __init__(self, frame: av.VideoFrame, aspect: float):
        self._frame, (self._axes, scale) = frame, _display_axes(frame)
        self.width, self.height = frame.width * (scale or aspect), frame.height
        self._size = np.array([self.width, self.height])
        if self._axes is not _UPRIGHT:
            self.width, self.height = (abs(self._axes) @ self._size).tolist()

    def render(self, height: int, width: int) -> np.ndarray:
        """Its pixels in another size, uint8 [height, width, 3]."""
        axes = np.round(self._axes)
        if abs(self._axes - axes).max() < 0.02:  # one degree
            turned = axes[0, 0] == 0
            pixels = self._scaled(*((width, height) if turned else (height, width)))
            pixels = pixels.transpose(1, 0, 2) if turned else pixels
            return pixels[:: int(axes[1].sum()), :: int(axes[0].sum())]
        shown = np.array([self.width, self.height]) / (width, height)
        source = np.maximum(1, np.round(self._size / np.sqrt(shown.prod()))).astype(int)
        pixels = Image.fromarray(self._scaled(source[1], source[0]))
        # Each pixel of the result, from the centre, comes from this place of the source.
        inverse = (source / self._size)[:, None] * np.linalg.inv(self._axes) * shown
        offset = source / 2 - inverse @ (width / 2, height / 2)
        data = np.column_stack([inverse, offset]).ravel().tolist()
        turned = pixels.transform(
            (width, height),
            Image.Transform.AFFINE,
            data,
            Image.Resampling.BICUBIC,
            fillcolor=(255, 255, 255),
        )
        return np.asarray(turned)

    def _scaled(self, height: int, width: int) -> np.ndarray:
        frame = self._frame
        if frame.interlaced_frame:  # or each field is scaled alone, and moving edges come out torn
            frame = _filtered(frame, ("setfield", "prog"))
        options = {"interpolation": _SCALER, "threads": 1}
        # A palette may have transparent colours.
        if frame.format.has_palette or any(each.is_alpha for each in frame.format.components):
            return resize(frame.reformat(format="rgba", **options).to_ndarray(), height, width)
        scaled = frame.reformat(width=width, height=height, format="rgb24", **options)
        return scaled.to_ndarray()


def _display_axes(frame: av.VideoFrame) -> tuple[np.ndarray, float | None]:
    """Directions of the frame's axes on display, as columns of a 2 x 2 matrix, and their scale.

    FFmpeg's display matrix (a b u, c d v, x y w) maps (x, y) to (a x + c y, b x + d y). The
    scale is that of x divided by that of y, where the matrix has one; one that maps everything
    to a line says nothing.
    """
    try:  # frame.side_data would make a cycle of references, and keep the frame in memory
        side_data = _side_data(frame)
    except ValueError:
        deleted = (("sidedata", f"delete:type={kind}") for kind in _UNKNOWN_TO_PYAV)
        side_data = _side_data(_filtered(frame, *deleted))
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT, None
    axes = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].T / 65536
    lengths = np.linalg.norm(axes, axis=0)
    if abs(np.linalg.det(axes)) <= 1e-3 * lengths.prod():
        return _UPRIGHT, None
    ratio = lengths[0] / lengths[1]
    return axes / lengths, None if abs(ratio - 1) < 0.01 else ratio


def _filtered(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.VideoFrame:
    """A frame after FFmpeg's filters, each a name and its arguments."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1),
    )
    nodes = [graph.add(*each) for each in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()
