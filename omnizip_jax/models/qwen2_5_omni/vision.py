"""Vision encoder of Qwen2.5-Omni: the patches of one temporal grid to video tokens.

Grids do not attend to each other: use ``jax.vmap`` or ``jax.lax.map`` for several. Inside a grid
most layers attend within square windows and a few attend to all patches. The size of the grid is
data: one compiled program encodes every grid that fits the slots.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
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
    normalise,
    patch_positions,
    rotary_angles,
    token_features,
)
from omnizip_jax.models.linear import Linear
from omnizip_jax.models.qwen2_5_omni.config import VisionConfig
from omnizip_jax.types import VisionFeatures

# CLIP's normalisation of red, green and blue values between 0 and 1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

RMS_EPS = 1e-6

# Logical axes of the parameters that are split over devices, by the end of their path.
AXES = {
    "q/weight": ("vision_heads", "embed"),
    "q/bias": ("vision_heads",),
    "k/weight": ("vision_heads", "embed"),
    "k/bias": ("vision_heads",),
    "v/weight": ("vision_heads", "embed"),
    "v/bias": ("vision_heads",),
    "attn/proj/weight": ("embed", "vision_heads"),
    "gate_proj/weight": ("vision_ffn", "embed"),
    "gate_proj/bias": ("vision_ffn",),
    "up_proj/weight": ("vision_ffn", "embed"),
    "up_proj/bias": ("vision_ffn",),
    "down_proj/weight": ("embed", "vision_ffn"),
}


class VisionAttention(nn.Module):
    """Self-attention, within windows or over the whole grid; also returns queries and keys."""

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x, full, angle, windows, cross, real):
        width, heads = self.config.hidden, (x.shape[0], self.config.heads, self.config.head_dim)
        linear = functools.partial(Linear, width, dtype=self.dtype, backend=self.backend)
        q = rope.rotate(linear(name="q")(x).reshape(heads), angle)
        k = rope.rotate(linear(name="k")(x).reshape(heads), angle)
        v = linear(name="v")(x).reshape(heads)
        fused = self.backend.fused_attention
        within = functools.partial(attend_windows, q, k, v, windows, fused=fused)
        size = _patches_in_window(self.config)
        # Padding attends to padding, so that no row of the softmax is empty.
        everywhere = real[:, None] == real
        if self.backend.masks_windows(x.shape[0]):
            mask = jnp.where(full, everywhere, windows[:, None] == windows)
            out = attend(q, k, v, mask[None], fused)
        else:
            out = jax.lax.switch(
                jnp.where(full, 0, 1 + cross),
                [
                    lambda: attend(q, k, v, everywhere[None], fused),
                    lambda: within(size, reach=0),
                    lambda: within(size, reach=1),
                ],
            )
        return linear(name="proj")(out.reshape(x.shape)), (q, k)


class VisionMLP(nn.Module):
    """SwiGLU feed-forward network, with biases."""

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, x):
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        gate = nn.silu(linear(self.config.ffn, name="gate_proj")(x))
        up = linear(self.config.ffn, name="up_proj")(x)
        return linear(self.config.hidden, name="down_proj")(gate * up)


class VisionBlock(nn.Module):
    """One pre-norm layer, with the signature of ``layers.run``: carry in, carry out.

    The carry is the hidden states, and queries and keys of the layer that is ``returned`` or None.
    """

    config: VisionConfig
    dtype: jnp.dtype
    backend: Backend

    @nn.compact
    def __call__(self, carry, index, full, returned, angle, windows, cross, real):
        x, kept = carry
        norm = functools.partial(_rms_norm, self.dtype)
        attention = VisionAttention(self.config, self.dtype, self.backend, name="attn")
        attended, heads = attention(norm("norm1")(x), full[index], angle, windows, cross, real)
        x = x + attended
        x = x + VisionMLP(self.config, self.dtype, self.backend, name="mlp")(norm("norm2")(x))
        if kept is not None:
            kept = jax.tree.map(lambda new, old: jnp.where(returned[index], new, old), heads, kept)
        return x, kept


class VisionEncoder(nn.Module):
    """Patch embedding, transformer layers with 2-D rotary positions, merger."""

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
    ) -> tuple[Float[Array, "P D"], None, VisionFeatures | None]:
        """Encode one temporal grid (two frames).

        Args:
            patches: pixels, 0 to 255: ``merge**2`` consecutive patches for each of P slots, each
                laid out channel, frame, row, column. The grid's tokens come first, row-major.
            grid_size: rows and columns of tokens; at most P tokens.
            attention: also return the features of the last full attention. One head's attention
                exists at a time; the keys are rotated.

        Returns:
            Tokens in the same order, with finite padding after ``rows * columns``; None, for lack
            of DeepStack; the features.

        Raises:
            ValueError: ``patches`` has another shape.
        """
        config, unit = self.config, self.config.merge**2
        check_patches(patches, config)
        slots = patches.shape[0] // unit
        # The windowed layers need whole blocks.
        padding = -slots % (_patches_in_window(config) // unit)
        patches = jnp.pad(patches, ((0, padding * unit), (0, 0)))

        window, cell = window_layout(slots + padding, grid_size, config)
        order = jnp.argsort(window)  # windows are contiguous, padding is last
        patches = patches.reshape(-1, unit, config.patch_values)[order]
        window = jnp.repeat(window[order], unit)
        angle = rotary_angles(patch_positions(cell[order], config.merge), config)
        real = window < 2 * (slots + padding)
        first, last = (window.reshape(-1, _patches_in_window(config))[:, at] for at in (0, -1))
        cross = jnp.any((first[1:] == last[:-1]) & (first[1:] < 2 * (slots + padding)))
        if not self.backend.windows_in_sequence:  # a choice under vmap would compute all
            cross = jnp.bool_(True)

        patches = patches.reshape(-1, config.patch_values)
        x = normalise(patches, PIXEL_MEAN, PIXEL_STD).astype(self.dtype)
        x = PatchEmbed(config, self.dtype, self.backend, False, name="patch_embed")(x)
        full = jnp.array([layer in config.full_attention_layers for layer in range(config.layers)])
        returned = jnp.arange(config.layers) == max(config.full_attention_layers, default=-1)
        block = VisionBlock(config, self.dtype, self.backend, parent=None)
        heads = jnp.zeros((x.shape[0], config.heads, config.head_dim), self.dtype)
        carry = (x, (heads, heads) if attention else None)
        shared = (full, returned, angle, window, cross, real)
        stack = layers.stacked(self, "blocks", block, config.layers, carry, 0, *shared)
        x, kept = layers.run(
            block, stack, carry, *shared, layers=range(config.layers), backend=self.backend
        )
        norm = functools.partial(_rms_norm, self.dtype)
        tokens = PatchMerger(config, self.dtype, self.backend, norm, name="merger")(x)
        back = jnp.argsort(order)[:slots]
        if kept is None:
            return tokens[back], None, None
        q, k = kept
        features = token_features(q, k, real, config.merge)
        return tokens[back], None, jax.tree.map(lambda x: x[back], features)


def window_layout(
    slots: int, grid_size: Int[Array, " 2"], config: VisionConfig
) -> tuple[Int[Array, " P"], Int[Array, "P 2"]]:
    """The attention window of every slot, and its row and column.

    Windows of full size have the lowest numbers, so that sorted they fill whole blocks; the others
    have at least ``slots``, and padding has ``2 * slots``.
    """
    rows, columns = grid_size[0], jnp.maximum(grid_size[1], 1)
    slot = jnp.arange(slots)
    row, column = slot // columns, slot % columns
    side = config.window // (config.patch * config.merge)
    window = row // side * ((columns + side - 1) // side) + column // side
    full = (row // side < rows // side) & (column // side < columns // side)
    window = jnp.where(full, window, slots + window)
    return jnp.where(row < rows, window, 2 * slots), jnp.stack([row, column], axis=1)


def attend_windows(
    q: Float[Array, "T N H"],
    k: Float[Array, "T N H"],
    v: Float[Array, "T N H"],
    windows: Int[Array, " T"],
    size: int,
    reach: int = 1,
    fused: bool = False,
) -> Float[Array, "T N H"]:
    """Attention within windows of at most ``size`` consecutive entries; ``size`` divides T.

    A window that overlaps a block of ``size`` extends at most to the neighbouring blocks, so each
    block attends to three, whatever the number and shape of the windows. Where no window crosses
    from one block to the next, ``reach=0`` attends to the block alone.
    """

    def blocks(x):
        return x.reshape(-1, size, *x.shape[1:])

    def neighbours(x, fill):
        x = blocks(x)
        if reach == 0:
            return x
        x = jnp.pad(x, [(1, 1)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return jnp.concatenate([x[:-2], x[1:-1], x[2:]], axis=1)

    mask = blocks(windows)[:, :, None] == neighbours(windows, -1)[:, None]
    attend_block = functools.partial(attend, fused=fused)
    out = jax.vmap(attend_block)(blocks(q), neighbours(k, 0), neighbours(v, 0), mask[:, None])
    return out.reshape(q.shape)


def _patches_in_window(config: VisionConfig) -> int:
    return (config.window // (config.patch * config.merge) * config.merge) ** 2


def _rms_norm(dtype: jnp.dtype, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=RMS_EPS, dtype=dtype, param_dtype=dtype, name=name)
