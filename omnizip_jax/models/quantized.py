"""Quantised weights: integers of 8 or 4 bits with scales, symmetric.

Weights alone are quantised, to the nearest integer; products are computed in the dtype of the
activations. int8 has a scale for each output, which is applied to the product. int4 has a scale for
each group of inputs of an output, as in GPTQ and AWQ.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int8, UInt8

VALUE_DTYPES = {8: np.dtype(np.int8), 4: np.dtype(np.uint8)}
SCALE_DTYPE = np.dtype(jnp.bfloat16)  # integers are multiples of the rounded scale: no error
GROUP = 128  # inputs that share a scale in int4
LEAST_GROUP = 32  # with 16, the scales would take a quarter of the integers' memory


class QuantizedArray(struct.PyTreeNode):
    """A matrix [O, I], or a stack of them: each value is an integer times a scale.

    It is sliced, placed and saved as its two arrays are.

    Attributes:
        values: int8; or uint8 with two integers a byte, both plus 8: of a group's inputs the first
            half in the low bits, the second half in the high bits.
        scales: one for every output (G is 1), or for each of its G groups of inputs.
    """

    values: Int8[Array, "*L O I"] | UInt8[Array, "*L O half"]
    scales: Float[Array, "*L O G"]

    @property
    def bits(self) -> int:
        return 8 if self.values.dtype == jnp.int8 else 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return *self.values.shape[:-1], self.values.shape[-1] * 8 // self.bits

    def __len__(self) -> int:
        return self.shape[0]

    def grouped(self) -> Int8[Array, "*L O G group"]:
        """The integers, one a byte, by the scale that they share."""
        groups = self.values.reshape(*self.scales.shape, -1)
        if self.bits == 8:
            return groups
        halves = [half.astype(jnp.int8) - 8 for half in (groups & 15, groups >> 4)]
        return jnp.concatenate(halves, axis=-1)

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> Float[Array, "*L O I"]:
        """The matrix itself."""
        scales = self.scales.astype(jnp.float32)[..., None]
        return (self.grouped() * scales).reshape(self.shape).astype(dtype)

    def multiply(self, x: Float[Array, "*T I"]) -> Float[Array, "*T O"]:
        """``x @ matrix.T``; the scales of 8 bits are applied to the product."""
        if self.bits == 8:
            return x @ self.values.astype(x.dtype).T * self.scales[:, 0].astype(x.dtype)
        return x @ self.dequantize(x.dtype).T


def quantize_vectors(x: Float[Array, "*S H"]) -> QuantizedArray:
    """Quantise vectors to 8 bits on the device, each with its own scale: keys and values."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32) / 127
    scales = jnp.where(largest > 0, largest, 1).astype(SCALE_DTYPE)
    return QuantizedArray(jnp.round(x / scales.astype(jnp.float32)).astype(jnp.int8), scales)


def dequantized(leaf: Any, dtype: jax.typing.DTypeLike) -> Array:
    """An array itself, or the values of a ``QuantizedArray``."""
    return leaf.dequantize(dtype) if is_quantized(leaf) else leaf


def is_quantized(leaf: Any) -> bool:
    """Whether a leaf of a parameter tree is a ``QuantizedArray``."""
    return isinstance(leaf, QuantizedArray)


def scales_per_output(inputs: int, bits: int) -> int:
    """Number of scales of one output (G); 0 if the inputs have no groups for 4 bits."""
    if bits == 8:
        return 1
    group = math.gcd(inputs, GROUP)
    return inputs // group if group >= LEAST_GROUP else 0


def quantize(matrix: np.ndarray, bits: int) -> tuple[QuantizedArray, float]:
    """Quantise a matrix [O, I], or a stack of them, on the host.

    The largest value of an output, or of a group of its inputs, becomes -128 or -8, whatever its
    sign; one of the opposite sign is at most 127 or 7. All integers are used then: with 4 bits the
    error is an eighth less than with -7 to 7.

    Returns:
        The quantised array, and the sum of its squared errors.
    """
    scales_each = scales_per_output(matrix.shape[-1], bits)
    groups = matrix.astype(np.float32).reshape(*matrix.shape[:-1], scales_each, -1)
    low, high, least = groups.min(axis=-1), groups.max(axis=-1), -(2 ** (bits - 1))
    largest = np.where(high > -low, high, low)
    scales = np.where(largest != 0, largest / least, 1).astype(SCALE_DTYPE)
    steps = scales.astype(np.float32)[..., None]
    integers = np.rint(groups / steps).clip(least, -least - 1)
    error = integers * steps - groups
    integers = integers.astype(np.int8)
    if bits == 4:
        first, second = np.split((integers + 8).view(np.uint8), 2, axis=-1)
        integers = first | second << 4
    parts: Any = integers.reshape(*matrix.shape[:-1], -1), scales  # numpy for jax
    return QuantizedArray(*parts), float(np.vdot(error, error))
