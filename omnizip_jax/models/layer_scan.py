"""Stacked layers: parameters of equal layers in one array each, and one loop over the layers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.cpu_kernels import StackedMatrix, hold_in_loop
from omnizip_jax.models.quantized import is_quantized


def stacked(module: nn.Module, name: str, layer: nn.Module, count: int, *example: Any) -> Any:
    """Create the parameters of ``count`` layers, with a leading axis, as a parameter of ``module``.

    Args:
        layer: a module without a parent.
        example: arguments of the layer's call, for its initialisation.
    """

    if module.has_variable("params", name):
        return module.get_variable("params", name)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda key: layer.init(key, *example)["params"])(keys)

    return module.param(name, init)


def run(
    layer: nn.Module,
    stack: Any,
    carry: Any,
    *shared: Any,
    layers: range,
    backend: Backend,
    tokens: int = 0,
) -> Any:
    """Pass ``carry`` through some of the layers: ``carry = layer(carry, index, *shared)``.

    A layer is sliced from the stack where it is used, so no part of the stack is copied.

    Args:
        layers: indices of the layers.
        tokens: rows of the carry, where short blocks take the backend's special paths (``Linear``).
    """

    def step(carry: Any, index: jax.Array | int) -> tuple[Any, None]:
        params = layer_params(stack, index, backend, tokens)
        return layer.apply({"params": params}, carry, index, *shared), None

    if backend.unrolls_layers(tokens):
        # Static slices: XLA on a GPU copies a scanned layer's weights before each product, and a
        # whole stack where it infers by itself that a dynamic slice is static.
        for index in layers:
            carry, _ = step(carry, index)
        return carry
    if not layers:
        return carry
    return jax.lax.scan(step, carry, jnp.arange(layers.start, layers.stop))[0]


def layer_params(stack: Any, index: jax.Array | int, backend: Backend, tokens: int = 0) -> Any:
    """One layer's parameters; matrices that the backend tiles remain in the stack, and experts."""
    if backend.holds_weights and not isinstance(index, int):
        stack, index = hold_in_loop(stack, index)

    def slice_leaf(path: Any, leaf: Any) -> Any:
        if len(leaf.shape) == 4:  # of experts, which are read one by one
            return StackedMatrix(leaf, jnp.int32(index))
        if isinstance(index, int):
            return jax.tree.map(lambda x: jax.lax.index_in_dim(x, int(index), keepdims=False), leaf)
        if path[-1].key == "weight":
            return stack_matrix(leaf, index, backend, tokens)
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    return jax.tree_util.tree_map_with_path(slice_leaf, stack, is_leaf=is_quantized)


def stack_matrix(stack: Any, index: Any, backend: Backend, rows: int) -> Any:
    """One matrix of a stack, for a product with some rows; it remains there if that is tiled."""
    if is_quantized(stack):
        tiled = backend.tiles_quantized
    else:
        tiled = backend.tiles_weights(rows, stack.shape[-1])
    if tiled:
        return StackedMatrix(stack, index)
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), stack)
