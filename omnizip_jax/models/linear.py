"""Products with weights: ``matmul``, through which all of them go, and a linear layer."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.cpu_kernels import StackedMatrix

SUMMED_TERMS = 16_384  # GPU: of a row that XLA sums in one kernel


def matmul(x: Float[Array, "*T I"], weight: Any, backend: Backend) -> Float[Array, "*T O"]:
    """``x @ weight.T`` for a weight [O, I] in any of its forms.

    Args:
        weight: an array, or a ``StackedMatrix``.
    """
    if isinstance(weight, StackedMatrix):
        return weight.apply(x)
    if x.shape[0] == 1 and backend.sums_single_rows:
        terms = weight.astype(jnp.float32) * x.astype(jnp.float32)
        # Ahead: XLA sums rows of more terms in two kernels, one after the other. On a mesh each
        # device has a part of the row already.
        count = 1 if backend.on_mesh else -(-terms.shape[1] // SUMMED_TERMS)
        parts = jnp.array_split(terms, count, axis=1)
        out = functools.reduce(jnp.add, (jnp.sum(part, axis=1) for part in parts))
        return out[None].astype(x.dtype)
    return x @ weight.T


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
        weight = self.get_variable("params", "weight")
        if not isinstance(weight, StackedMatrix):
            init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
            weight = self.param("weight", init, (self.features, x.shape[-1]), self.dtype)
        out = matmul(x, weight, self.backend)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return out
