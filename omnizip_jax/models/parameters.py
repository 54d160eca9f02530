"""Descriptions of parameters: what each array of a model is, from the released file to the device.

A family describes its parameters as one tree of ``ArrayInfo``; random weights, conversion, loading,
placement and sizes derive from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class ArrayInfo:
    """Description of one parameter, a leaf of a model's tree.

    Attributes:
        path: its path in the tree, for example ``("audio", "layers", "fc1", "weight")``.
        shape: its shape; stacked parameters have a leading axis of layers.
        dtype: type of its values.
        axes: logical axis of each dimension, None for one without a name.
        names: the released tensors, one for each layer, or a single one.
        released_shape: shape of each released tensor.
        reversed: the released tensors have the axes in reverse order.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...]
    names: tuple[str, ...]
    released_shape: tuple[int, ...]
    reversed: bool = False

    @property
    def stacked(self) -> bool:
        return self.axes[0] == "layers"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def abstract(self, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
        """The parameter as JAX's abstract array."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)

    def views(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each released name with its part of ``array``, axes in the released order."""
        for i, name in enumerate(self.names):
            part = array[i] if self.stacked else array
            yield name, part.T if self.reversed else part


def logical_axes(
    path: tuple[str, ...], ndim: int, stacked: bool, table: Mapping[str, tuple[str | None, ...]]
) -> tuple[str | None, ...]:
    """Logical axes of a parameter by the end of its path; None where the table has none.

    Args:
        stacked: the first dimension is that of the layers, which the table leaves out.
    """
    name, unnamed = "/".join(path), (None,) * (ndim - stacked)
    inner = next((axes for end, axes in table.items() if name.endswith(f"/{end}")), unnamed)
    return ("layers", *inner) if stacked else inner
