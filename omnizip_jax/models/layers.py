"""Layers of one kind: their parameters stand in one stack, and one loop runs over them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

TILE = 2**17  # bytes


def stacked(module: nn.Module, name: str, layer: nn.Module, count: int, *example: Any) -> Any:
    """The parameters of ``count`` layers along a leading axis, a parameter of ``module``.

    Args:
        layer: a module without a parent.
        example: what the layer is called with.
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
    hold: bool,
    unrolled: bool = False,
    tiled: bool = False,
) -> Any:
    """Pass ``carry`` through some of the layers: ``carry = layer(carry, index, *shared)``.

    A layer is cut out of the stack where it is used, so no part of the stack is ever copied.

    Args:
        layers: which.
        hold: keep the weights in the loop (``held``).
        unrolled: write the layers out one after another instead of the loop.
        tiled: leave the matrices named ``weight`` in the stack, as ``Stacked``.
    """

    def step(carry: Any, index: jax.Array | int) -> tuple[Any, None]:
        params = layer_of(stack, index, hold, tiled)
        return layer.apply({"params": params}, carry, index, *shared), None

    if unrolled:
        # Static slices: XLA on a GPU reads them where they are, and copies a whole stack where it
        # has found out by itself that a dynamic one is static.
        for index in layers:
            carry, _ = step(carry, index)
        return carry
    if not layers:
        return carry
    return jax.lax.scan(step, carry, jnp.arange(layers.start, layers.stop))[0]


class Stacked(struct.PyTreeNode):
    """A matrix [O, I] of one layer that stays in the stack of all layers."""

    stack: Float[Array, "L O I"]
    index: Int[Array, ""]

    def times(self, x: Float[Array, "T I"]) -> Float[Array, "T O"]:
        """``x @ matrix.T`` in tiles of rows that stay in a core's cache from the copy to its use.

        XLA on a CPU copies a layer's matrix out of the stack before a product with several rows:
        whole matrices go to memory and back.
        """
        _, outputs, inputs = self.stack.shape
        rows = min(max(TILE // (inputs * self.stack.dtype.itemsize), 1), outputs)

        def add(tile: Array, out: Array) -> Array:
            start = jnp.minimum(tile * rows, outputs - rows)  # the last one may overlap
            stack, start = held(self.stack, start)
            matrix = jax.lax.dynamic_slice(stack, (self.index, start, 0), (1, rows, inputs))[0]
            return jax.lax.dynamic_update_slice(out, x @ matrix.T, (0, start))

        out = jnp.zeros((x.shape[0], outputs), x.dtype)
        return jax.lax.fori_loop(0, -(-outputs // rows), add, out)


def layer_of(stack: Any, index: jax.Array | int, hold: bool, tiled: bool = False) -> Any:
    """One layer's parameters."""
    if isinstance(index, int):
        return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, index, keepdims=False), stack)
    if hold:
        stack, index = held(stack, index)

    def cut(path: Any, leaf: jax.Array) -> Any:
        if tiled and path[-1].key == "weight":
            return Stacked(leaf, index)
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    return jax.tree_util.tree_map_with_path(cut, stack)


def held(weights: Any, turn: jax.Array) -> tuple[Any, jax.Array]:
    """Weights that a loop uses, held in it by something that changes with every turn.

    XLA on a CPU computes in float32. What it does to weights in bfloat16 it would do before the
    loop, as that is the same for every turn, and to a whole stack before a layer is cut out: twice
    the memory of all weights on top of them. Behind the barrier they belong to the turn.
    """
    return jax.lax.optimization_barrier((weights, turn))
