"""Descriptions of parameters: what each array of a model is, from the released file to the device.

A family describes its parameters as one tree of ``ArrayInfo``; random weights, conversion, loading,
placement and sizes derive from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from omnizip_jax.models.quantized import (
    SCALE_DTYPE,
    VALUE_DTYPES,
    QuantizedArray,
    scales_per_output,
)

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ArrayInfo:
    """Description of one parameter, a leaf of a model's tree.

    Attributes:
        path: its path in the tree, for example ``("audio", "layers", "fc1", "weight")``.
        shape: its shape; stacked parameters have a leading axis of layers, and those of experts a
            second one of experts.
        dtype: type of its values.
        axes: logical axis of each dimension, None for one without a name.
        names: the released tensors, in the order of the stack, or a single one.
        released_shape: shape of each released tensor.
        reversed: the released tensors have the axes in reverse order.
        bits: 8 or 4 if it is a ``QuantizedArray``, otherwise None; ``dtype`` is then that of its
            released values.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: Axes
    names: tuple[str, ...]
    released_shape: tuple[int, ...]
    reversed: bool = False
    bits: int | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes along which released tensors are stacked."""
        return self.shape[: sum(axis in ("layers", "experts") for axis in self.axes)]

    @property
    def stored(self) -> tuple[ArrayInfo, ...]:
        """Descriptions of its parts in a checkpoint: itself, or the experts of each layer."""
        if len(self.stack) < 2:
            return (self,)
        layers, experts = self.stack
        return tuple(
            dataclasses.replace(
                self,
                path=path,
                shape=self.shape[1:],
                axes=self.axes[1:],
                names=self.names[layer * experts :][:experts],
            )
            for layer, path in enumerate(stored_paths(self.path, layers))
        )

    def quantized_bits(self, bits: int | None, everything: bool = False) -> int | None:
        """Bits of its values if the decoder's matrices have so many; None: it is not quantised.

        The router of experts ("gate") is not: it is small, and its errors choose other experts.

        Args:
            everything: quantise encoders, embeddings and the logits head too. Encoders and
                embeddings have 8 bits at least: their errors change what is seen and heard.
        """
        tower, *_, module, name = self.path
        if bits is None or name not in ("weight", "embedding") or module == "gate":
            return None
        layers = tower == "text" and len(self.stack) > 0
        if not (layers or everything):
            return None
        grouped = scales_per_output(self.shape[-1], bits) > 0
        return bits if (layers or module == "lm_head") and grouped else 8

    @property
    def arrays(self) -> tuple[ArrayInfo, ...]:
        """Descriptions of the arrays that it consists of: itself, or values and scales."""
        if self.bits is None:
            return (self,)
        *rows, inputs = self.shape
        scales = scales_per_output(inputs, self.bits)
        plain = dataclasses.replace(self, bits=None)
        return (
            dataclasses.replace(
                plain,
                path=(*self.path, "values"),
                shape=(*rows, inputs * self.bits // 8),
                dtype=VALUE_DTYPES[self.bits],
            ),
            dataclasses.replace(
                plain,
                path=(*self.path, "scales"),
                shape=(*rows, scales),
                dtype=SCALE_DTYPE,
                axes=(*self.axes[:-1], None),
            ),
        )

    @property
    def nbytes(self) -> int:
        return sum(math.prod(array.shape) * array.dtype.itemsize for array in self.arrays)

    def build(self, make: Callable[[ArrayInfo], Any]) -> Any:
        """An array made by ``make``, or a quantised array of two."""
        made = map(make, self.arrays)
        return next(made) if self.bits is None else QuantizedArray(*made)

    def abstract(self, place: Callable[[Axes], jax.sharding.Sharding] | None = None) -> Any:
        """The parameter as JAX's abstract array, or a ``QuantizedArray`` of them.

        Args:
            place: logical axes of an array to its placement.
        """

        def make(array: ArrayInfo) -> jax.ShapeDtypeStruct:
            sharding = place(array.axes) if place else None
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        return self.build(make)

    def views(self, array: Any) -> Iterator[tuple[str, Any]]:
        """Yield each released name with its part of the array, axes in the released order."""
        for index, name in zip(np.ndindex(self.stack), self.names, strict=True):
            part = jax.tree.map(lambda x, index=index: x[index], array)
            yield name, part.T if self.reversed else part


def path_of(keys: Any) -> tuple[str, ...]:
    """Path of a leaf, from the keys that ``jax.tree_util`` gives it."""
    return tuple(jax.tree_util.keystr(keys, simple=True, separator="/").split("/"))


def stored_paths(path: tuple[str, ...], layers: int) -> list[tuple[str, ...]]:
    """Paths of a parameter's arrays in a checkpoint: one, or of experts one for each layer.

    So conversion needs no more memory than the experts of one layer.
    """
    if "experts" not in path:
        return [path]
    end = path.index("layers") + 1
    return [(*path[:end], str(layer), *path[end:]) for layer in range(layers)]


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
