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
    """One layer's parameters; matrices that the backend tiles remain in the stack."""
    if isinstance(index, int):
        return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, index, keepdims=False), stack)
    if backend.holds_weights:
        stack, index = hold_in_loop(stack, index)

    def slice_leaf(path: Any, leaf: Any) -> Any:
        if is_quantized(leaf):
            tiled = backend.tiles_quantized
        else:
            tiled = path[-1].key == "weight" and backend.tiles_weights(tokens, leaf.shape[-1])
        if tiled:
            return StackedMatrix(leaf, index)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), leaf)

    return jax.tree_util.tree_map_with_path(slice_leaf, stack, is_leaf=is_quantized)
