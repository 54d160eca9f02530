"""Vision encoder of Qwen3-Omni: the patches of one temporal grid to video tokens.

Grids do not attend to each other: use ``jax.vmap`` or ``jax.lax.map`` for several. The size of the
grid is data: one compiled program encodes every grid that fits the slots.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from omnizip_jax.models import layer_scan as layers
from omnizip_jax.models import rope
from omnizip_jax.models.attention import attend
from omnizip_jax.models.backend import Backend, full_precision
from omnizip_jax.models.encoder_layers import (
    PatchEmbed,
    PatchMerger,
    check_patches,
    layer_norm,
    normalise,
    patch_positions,
    rotary_angles,
    token_features,
)
from omnizip_jax.models.linear import Embedding, Linear
from omnizip_jax.models.qwen3_omni.config import VisionConfig
from omnizip_jax.types import VisionFeatures

# Normalisation of red, green and blue values between 0 and 1.
PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.5, 0.5, 0.5)

NORM_EPS = 1e-6

# Logical axes of the parameters that are split over devices, by the end of their path. The joint
# projection of queries, keys and values is on every device: its rows are those of all heads' q,
# then k, then v.
AXES = {
    "attn/proj/weight": ("embed", "vision_heads"),
    "linear_fc1/weight": ("vision_ffn", "embed"),
    "linear_fc1/bias": ("vision_ffn",),
    "linear_fc2/weight": ("embed", "vision_ffn"),
}


class VisionAttention(nn.Module):
    """Self-attention over a grid; also returns queries and keys."""

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x, angle, real):
        width = self.config.hidden
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        qkv = linear(3 * width, name="qkv")(x)
        q, k, v = jnp.split(qkv.reshape(len(x), -1, self.config.head_dim), 3, axis=1)
        q, k = rope.rotate(q, angle), rope.rotate(k, angle)
        # Padding attends to padding, so that no row of the softmax is empty.
        mask = (real[:, None] == real)[None]
        out = attend(q, k, v, mask, self.backend.fused_attention)
        return linear(width, name="proj")(out.reshape(x.shape)), (q, k)


class VisionMLP(nn.Module):
    """Feed-forward network with the tanh form of GELU."""

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x):
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        x = nn.gelu(linear(self.config.ffn, name="linear_fc1")(x), approximate=True)
        return linear(self.config.hidden, name="linear_fc2")(x)


class VisionBlock(nn.Module):
    """One pre-norm layer, with the signature of ``layers.run``: carry in, carry out.

    The carry is the hidden states, those after each of the layers in ``deepstack``, and queries and
    keys of the last layer or None.
    """

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, carry, index, angle, real):
        x, outputs, heads = carry
        norm = functools.partial(_norm, self.dtype)
        attention = VisionAttention(self.config, self.dtype, self.backend, name="attn")
        attended, new = attention(norm("norm1")(x), angle, real)
        x = x + attended
        x = x + VisionMLP(self.config, self.dtype, self.backend, name="mlp")(norm("norm2")(x))
        taken = jnp.array(self.config.deepstack) == index
        return x, jnp.where(taken[:, None, None], x, outputs), None if heads is None else new


class VisionEncoder(nn.Module):
    """Patch embedding, learned and rotary positions, transformer layers, mergers."""

    config: VisionConfig
    dtype: jnp.dtype = jnp.float32
    backend: Backend = Backend.CPU

    @nn.compact
    @full_precision
    def __call__(
        self,
        patches: UInt8[Array, "patches values"],
        grid_size: Int[Array, " 2"],
        attention: bool = False,
    ) -> tuple[Float[Array, "P D"], Float[Array, "K P D"], VisionFeatures | None]:
        """Encode one temporal grid (two frames).

        Args:
            patches: pixels, 0 to 255: ``merge**2`` consecutive patches for each of P slots, each
                laid out channel, frame, row, column. The grid's tokens come first, row-major.
            grid_size: rows and columns of tokens; at most P tokens.
            attention: also return the features of the last layer; the keys are rotated.

        Returns:
            Tokens in the same order, with finite padding after ``rows * columns``; the rows of the
            same tokens for the decoder's first K layers (DeepStack); the features.

        Raises:
            ValueError: ``patches`` has another shape.
        """
        config = self.config
        check_patches(patches, config)
        slot = jnp.arange(patches.shape[0] // config.merge**2)
        cell = jnp.stack(jnp.divmod(slot, jnp.maximum(grid_size[1], 1)), axis=1)
        position = patch_positions(cell, config.merge)
        real = jnp.repeat(slot < jnp.prod(grid_size), config.merge**2)

        x = normalise(patches, PIXEL_MEAN, PIXEL_STD).astype(self.dtype)
        x = PatchEmbed(config, self.dtype, self.backend, True, name="patch_embed")(x)
        table = Embedding(
            config.positions, config.hidden, self.dtype, self.backend, name="pos_embed"
        )
        index, weight = interpolate(position, grid_size * config.merge, config.positions_side)
        x += jnp.sum(table(index) * weight[..., None], axis=1).astype(self.dtype)

        block = VisionBlock(config, self.dtype, self.backend, parent=None)
        outputs = jnp.zeros((len(config.deepstack), *x.shape), self.dtype)
        heads = jnp.zeros((x.shape[0], config.heads, config.head_dim), self.dtype)
        carry = (x, outputs, (heads, heads) if attention else None)
        shared = (rotary_angles(position, config), real)
        stack = layers.stacked(self, "blocks", block, config.layers, carry, 0, *shared)
        x, outputs, kept = layers.run(
            block, stack, carry, *shared, layers=range(config.layers), backend=self.backend
        )
        norm = functools.partial(_norm, self.dtype)
        merger = functools.partial(PatchMerger, config, self.dtype, self.backend, norm)
        deepstack = [
            merger(joined=True, name=f"merger_list_{i}")(output) for i, output in enumerate(outputs)
        ]
        tokens, rows = merger(name="merger")(x), jnp.stack(deepstack)
        if kept is None:
            return tokens, rows, None
        q, k = kept
        return tokens, rows, token_features(q, k, real, config.merge)


def interpolate(
    position: Int[Array, "patches 2"], size: Int[Array, " 2"], side: int
) -> tuple[Int[Array, "patches 4"], Float[Array, "patches 4"]]:
    """Entries of a square table around each patch, and their bilinear weights.

    The corners of the grid are at the corners of the table.

    Args:
        position: row and column of each patch; padding may lie outside the grid.
        size: rows and columns of patches in the grid.
        side: rows and columns of the table.
    """
    at = position * ((side - 1) / jnp.maximum(size - 1, 1))
    low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, side - 1)
    high = jnp.minimum(low + 1, side - 1)
    share = at - low
    row, column = jnp.stack([low, high], axis=-1).swapaxes(0, 1)
    of_row, of_column = jnp.stack([1 - share, share], axis=-1).swapaxes(0, 1)
    index = row[:, :, None] * side + column[:, None]
    return index.reshape(-1, 4), (of_row[:, :, None] * of_column[:, None]).reshape(-1, 4)


def _norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return layer_norm(dtype, name, NORM_EPS)
