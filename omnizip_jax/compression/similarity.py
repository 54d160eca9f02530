"""Cosines without normalised copies: products first, inverse norms afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def products(a: Float[Array, "n D"], b: Float[Array, "m D"]) -> Float[Array, "n m"]:
    """All inner products, accumulated at least in float32 on every backend."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(
        "nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
    )


def norms(x: Float[Array, "*n D"]) -> Float[Array, "*n"]:
    """Euclidean norms, at least in float32."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))), -1))


def cosines(a: Float[Array, "n D"], b: Float[Array, "m D"]) -> Float[Array, "n m"]:
    """Eq. 3-4: inner products of ``x / (|x| + 1e-6)``."""
    return products(a, b) / (norms(a) + 1e-6)[:, None] / (norms(b) + 1e-6)[None, :]


def cosine_distances(x: Float[Array, "n D"]) -> Float[Array, "n n"]:
    """``1 - cos`` of all pairs, at least 0, and 0 on the diagonal."""
    return jnp.where(jnp.eye(len(x), dtype=bool), 0, jnp.maximum(1 - cosines(x, x), 0))


def cosine(a: Float[Array, "*n D"], b: Float[Array, "*n D"]) -> Float[Array, "*n"]:
    """Cosines of vectors pair by pair."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    product = jnp.sum(a.astype(dtype) * b.astype(dtype), axis=-1)
    return product / jnp.maximum(norms(a) * norms(b), 1e-12)
