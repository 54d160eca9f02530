"""Descriptions of parameters that are stacked twice, by layers and experts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omnizip_jax.models.parameters import ArrayInfo
from omnizip_jax.models.quantized import quantize

LAYERS, EXPERTS = 2, 3
NAMES = tuple(f"layers.{i}.experts.{j}.up_proj" for i in range(LAYERS) for j in range(EXPERTS))
INFO = ArrayInfo(
    path=("text", "layers", "mlp", "experts", "up_proj", "weight"),
    shape=(LAYERS, EXPERTS, 4, 64),
    dtype=np.dtype(np.float32),
    axes=("layers", "experts", "expert_ffn", "embed"),
    names=NAMES,
    released_shape=(4, 64),
)


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).standard_normal(INFO.shape).astype(np.float32)


def test_released_tensors_are_those_of_layers_and_experts(array):
    views = dict(INFO.views(array))
    assert len(views) == LAYERS * EXPERTS
    np.testing.assert_array_equal(views["layers.1.experts.2.up_proj"], array[1, 2])


def test_a_checkpoint_has_an_array_for_each_layer(array):
    parts = INFO.stored
    assert [part.path[:3] for part in parts] == [("text", "layers", str(i)) for i in range(LAYERS)]
    assert sum(part.nbytes for part in parts) == INFO.nbytes
    for layer, part in enumerate(parts):
        assert part.path[3:] == INFO.path[2:] and part.stored == (part,)
        for name, view in part.views(array[layer]):
            np.testing.assert_array_equal(view, dict(INFO.views(array))[name])


@pytest.mark.parametrize(("bits", "size"), [(8, 64 + 2), (4, 32 + 2)])
def test_sizes_and_views_of_quantised_experts(array, bits, size):
    assert INFO.quantized_bits(bits) == bits
    info = dataclasses.replace(INFO.stored[1], bits=bits)
    assert info.nbytes == EXPERTS * 4 * size
    quantized, _ = quantize(array[1], bits)
    views = dict(info.views(quantized))
    expected, _ = quantize(array[1, 2], bits)
    np.testing.assert_array_equal(views["layers.1.experts.2.up_proj"].values, expected.values)


def test_the_router_is_not_quantised():
    path = ("text", "layers", "mlp", "gate", "weight")
    router = dataclasses.replace(INFO, path=path, axes=("layers", None, None, None))
    assert router.quantized_bits(4) is None and router.quantized_bits(8, True) is None
    assert router.stored == (router,)
