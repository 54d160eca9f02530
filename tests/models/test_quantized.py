"""Quantised arrays: their integers, their errors, and products with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.models import cpu_kernels
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.cpu_kernels import MANY_ROWS, StackedMatrix
from omnizip_jax.models.linear import matmul
from omnizip_jax.models.quantized import QuantizedArray, dequantized, quantize, scales_per_output


def random_matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def integers_by_hand(packed: np.ndarray, group: int) -> np.ndarray:
    """4-bit integers, one byte of a group after the other."""
    half, rows = group // 2, []
    for row in packed:
        values = np.zeros(2 * len(row), int)
        for i, byte in enumerate(row):
            start = i // half * group + i % half
            values[start], values[start + half] = int(byte) % 16 - 8, int(byte) // 16 - 8
        rows.append(values)
    return np.stack(rows)


@pytest.mark.parametrize(("bits", "least"), [(8, -128), (4, -8)])
def test_values_are_the_nearest_multiples_of_the_scale(bits, least):
    matrix = random_matrix(5, 256)
    quantized, squares = quantize(matrix, bits)
    groups = {8: 1, 4: 2}[bits]
    assert quantized.scales.shape == (5, groups) and quantized.shape == (5, 256)
    integers = quantized.values.astype(int)
    if bits == 4:
        integers = integers_by_hand(np.asarray(quantized.values), 128)
        np.testing.assert_array_equal(integers.reshape(5, 2, 128), quantized.grouped())
    assert (integers.reshape(5, groups, -1).min(axis=-1) == least).all()
    scales = quantized.scales.astype(np.float64).repeat(256 // groups, axis=1)
    error = integers * scales - matrix
    # A value as large as the largest, of the opposite sign, would be one step more than there is.
    most = np.where(integers == -least - 1, 1.01, 0.501)
    assert (np.abs(error) <= np.abs(scales) * most).all()
    np.testing.assert_allclose(quantized.dequantize() - matrix, error, atol=1e-6)
    np.testing.assert_allclose(squares, (error**2).sum(), rtol=1e-4)


def test_zeros_and_stacks():
    stack = random_matrix(3, 4, 64)
    stack[1, 2] = 0
    quantized, _ = quantize(stack, 4)
    assert quantized.shape == (3, 4, 64) and not np.any(quantized.dequantize()[1, 2])
    layer, _ = quantize(stack[2], 4)
    np.testing.assert_array_equal(quantized.dequantize()[2], layer.dequantize())


def test_groups_divide_the_inputs():
    assert [scales_per_output(n, 4) for n in (3584, 18944, 96, 2752, 3420)] == [28, 148, 3, 43, 0]
    assert scales_per_output(3420, 8) == 1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 3, MANY_ROWS])
@pytest.mark.parametrize("backend", Backend)
def test_products_equal_those_with_the_matrix_itself(bits, rows, backend):
    stack, x = random_matrix(2, 70, 128), random_matrix(rows, 128)
    quantized: QuantizedArray = jax.tree.map(jnp.asarray, quantize(stack, bits)[0])
    layer = jax.tree.map(lambda leaf: leaf[1], quantized)
    expected = x @ np.asarray(layer.dequantize()).T
    for weight in (layer, StackedMatrix(quantized, jnp.int32(1))):
        found = matmul(jnp.asarray(x), weight, backend)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, None])
def test_products_with_a_long_row(bits, monkeypatch):
    """By groups of inputs, in tiles of which the last one overlaps."""
    monkeypatch.setattr(cpu_kernels, "FUSED_INPUTS", 64)
    monkeypatch.setattr(cpu_kernels, "LARGE_TILE_VALUES", 2**12)
    stack, x = random_matrix(2, 70, 256), random_matrix(1, 256)
    weight = jax.tree.map(jnp.asarray, quantize(stack, bits)[0] if bits else stack)
    expected = x @ np.asarray(dequantized(weight, jnp.float32))[1].T
    found = StackedMatrix(weight, jnp.int32(1)).apply(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
