"""Mixture of experts: a router, and the feed-forward networks that it chooses for each token.

The products of all tokens of one expert are computed together, in blocks of at most ``BLOCK`` rows,
so an expert's weights are read once for many tokens, and those of others not at all.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from omnizip_jax.models.backend import Backend
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.cpu_kernels import StackedMatrix, hold_in_loop
from omnizip_jax.models.layer_scan import stack_matrix
from omnizip_jax.models.linear import Linear, matmul, weight_parameter
from omnizip_jax.models.sharding import over_experts

# Logical axes of the parameters, by the end of their path.
AXES = {
    "experts/gate_proj/weight": ("experts", "expert_ffn", "embed"),
    "experts/up_proj/weight": ("experts", "expert_ffn", "embed"),
    "experts/down_proj/weight": ("experts", "embed", "expert_ffn"),
}
BLOCK = 128  # rows of one product; log, "mixture of experts"
CHUNK = 4096  # tokens at once: a result of each expert of each token is in memory


class Experts(nn.Module):
    """A feed-forward network of ``config.experts`` SwiGLU networks, some of them for each token."""

    config: TextConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        router = Linear(self.config.experts, False, self.dtype, self.backend, name="gate")
        weights, chosen = choose_experts(router(x), self.config.experts_per_token)
        networks = ExpertWeights(self.config, self.dtype, name="experts")()

        apply = functools.partial(_apply_experts, backend=self.backend)
        return over_experts(apply, networks, x, weights, chosen)


def choose_experts(
    logits: Float[Array, "T E"], count: int
) -> tuple[Float[Array, "T K"], Int[Array, "T K"]]:
    """The ``count`` most probable experts of each token, and their weights, which sum to 1."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), count)
    weights /= jnp.sum(weights, axis=-1, keepdims=True)
    return weights.astype(logits.dtype), chosen


class ExpertWeights(nn.Module):
    """The matrices of all experts of a layer, each a ``StackedMatrix`` of layers and experts."""

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> dict[str, StackedMatrix]:
        experts, wide, hidden = self.config.experts, self.config.expert_ffn, self.config.hidden
        shapes = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden)}
        shapes |= {"down_proj": (hidden, wide)}
        return {
            name: ExpertMatrix((experts, *shape), self.dtype, name=name)()
            for name, shape in shapes.items()
        }


class ExpertMatrix(nn.Module):
    """One matrix of each expert."""

    shape: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> StackedMatrix:
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=(0,))
        weight = weight_parameter(self, "weight", init, self.shape)
        if isinstance(weight, StackedMatrix):
            return weight
        return StackedMatrix(jax.tree.map(lambda x: x[None], weight), jnp.int32(0))


def _apply_experts(
    networks: dict[str, StackedMatrix],
    first: Int[Array, ""] | int,
    x: Float[Array, "T D"],
    weights: Float[Array, "T K"],
    chosen: Int[Array, "T K"],
    backend: Backend,
) -> Float[Array, "T D"]:
    """The weighted sum of the chosen experts' results, of those experts that are present.

    Args:
        networks: stacks of layers and experts.
        first: number of the first expert in them.
    """
    if len(x) > CHUNK:
        apply = functools.partial(_apply_experts, networks, first, backend=backend)
        padding = -len(x) % CHUNK
        parts = (
            jnp.pad(y, ((0, padding), (0, 0))).reshape(-1, CHUNK, y.shape[1])
            for y in (x, weights, chosen)
        )
        out = jax.lax.map(lambda part: apply(*part), tuple(parts))
        return out.reshape(-1, x.shape[1])[: len(x)]

    experts = networks["gate_proj"].stack.shape[1]
    rows, (tokens, count) = min(BLOCK, len(x)), chosen.shape
    local = chosen - first
    present = (local >= 0) & (local < experts)
    # Assignments of tokens to experts, in the order of the experts; those of others are last.
    key = jnp.where(present, local, experts).reshape(-1)
    order = jnp.argsort(key)
    sizes = jnp.bincount(key, length=experts)
    ends = jnp.cumsum(sizes)
    blocks = -(-sizes // rows)  # of each expert
    last_blocks = jnp.cumsum(blocks)
    padded = jnp.pad(order, (0, rows))

    def add_block(block: Array, out: Array) -> Array:
        expert = jnp.searchsorted(last_blocks, block, side="right")
        number = block - (last_blocks - blocks)[expert]
        start = (ends - sizes)[expert] + number * rows
        index = jax.lax.dynamic_slice(padded, (start,), (rows,)) // count
        part = _network(networks, expert, x[index], backend)
        # Rows beyond the expert's own are overwritten by the next block.
        return jax.lax.dynamic_update_slice(out, part, (start, 0))

    dtype = x.dtype
    if not backend.on_gpu:  # a CPU computes in float32, and would convert all results in each step
        x = x.astype(jnp.float32)
    out = jnp.zeros((tokens * count + rows, x.shape[1]), x.dtype)
    out = jax.lax.fori_loop(0, last_blocks[-1], add_block, out)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order))).reshape(tokens, count)
    weights = jnp.where(present, weights, 0).astype(x.dtype)
    terms = (weights[:, i, None] * out[place[:, i]] for i in range(count))
    return functools.reduce(jnp.add, terms).astype(dtype)


def _network(
    networks: dict[str, StackedMatrix],
    expert: Int[Array, ""],
    x: Float[Array, "T D"],
    backend: Backend,
) -> Float[Array, "T D"]:
    """The SwiGLU network of one expert."""

    def product(x: Array, name: str) -> Array:
        matrix = networks[name].expert(expert)
        stack, index = matrix.stack, matrix.index
        if backend.holds_weights:
            stack, index = hold_in_loop(stack, index)
        return matmul(x, stack_matrix(stack, index, backend, len(x)), backend)

    return product(nn.silu(product(x, "gate_proj")) * product(x, "up_proj"), "down_proj")
