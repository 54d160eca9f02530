"""Products with weights: ``matmul``, through which all of them go, and a linear layer."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.cpu_kernels import StackedMatrix
from omnizip_jax.models.quantized import QuantizedArray, dequantized
from omnizip_jax.models.sharding import table_rows

SUMMED_TERMS = 16_384  # GPU: of a row that XLA sums in one kernel


def matmul(x: Float[Array, "*T I"], weight: Any, backend: Backend) -> Float[Array, "*T O"]:
    """``x @ weight.T`` for a weight [O, I] in any of its forms.

    Args:
        weight: an array, a ``QuantizedArray``, or a ``StackedMatrix`` of either.
    """
    if isinstance(weight, QuantizedArray) and backend.tiles_quantized:
        weight = StackedMatrix(jax.tree.map(lambda x: x[None], weight), jnp.int32(0))
    if isinstance(weight, StackedMatrix):
        return weight.apply(x)
    if x.shape[0] == 1 and backend.sums_single_rows:
        out = _sum_products(x.astype(jnp.float32), weight, backend)
        return out[None].astype(x.dtype)
    if isinstance(weight, QuantizedArray):
        return weight.multiply(x)
    return x @ weight.T


def _sum_products(x: Float[Array, "1 I"], weight: Any, backend: Backend) -> Float[Array, " O"]:
    """The product with one row, as an elementwise product and sums."""
    if isinstance(weight, QuantizedArray):
        groups = weight.grouped()
        terms = groups.astype(jnp.float32) * x.reshape(groups.shape[1:])
        return jnp.sum(_sum_rows(terms, backend) * weight.scales, axis=-1)
    return _sum_rows(weight.astype(jnp.float32) * x, backend)


def _sum_rows(terms: Float[Array, "*O I"], backend: Backend) -> Float[Array, "*O"]:
    # Ahead: XLA sums rows of more terms in two kernels, one after the other. On a mesh each device
    # has a part of the row already.
    count = 1 if backend.on_mesh else -(-terms.shape[-1] // SUMMED_TERMS)
    parts = jnp.array_split(terms, count, axis=-1)
    return functools.reduce(jnp.add, (jnp.sum(part, axis=-1) for part in parts))


def weight_parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...]) -> Any:
    """A weight of a module in the form in which it was passed; ``init`` makes an array."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, module.dtype)


class Linear(nn.Module):
    """``nn.Dense`` with the released layout, [out, in].

    XLA on a CPU then reads the weights of a product with one row directly from the scanned stack,
    where it copies [in, out] kernels first. Row decode.vs_transformers: 14.0 to 9.6 ms a token.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend.CPU

    @nn.compact
    def __call__(self, x: Float[Array, "*T I"]) -> Float[Array, "*T O"]:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = weight_parameter(self, "weight", init, (self.features, x.shape[-1]))
        out = matmul(x, weight, self.backend)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return out


class Embedding(nn.Module):
    """``nn.Embed`` with a table in any of the forms of a weight."""

    entries: int
    features: int
    dtype: jnp.dtype
    backend: Backend

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        self.embedding = weight_parameter(self, "embedding", init, (self.entries, self.features))

    def __call__(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """The rows of the tokens."""
        rows = jax.tree.map(lambda x: table_rows(x, tokens), self.embedding)
        return dequantized(rows, self.dtype)

    def attend(self, x: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """The products with all rows."""
        return matmul(x, self.embedding, self.backend)
