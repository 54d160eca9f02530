"""What the encoders of the families share: Whisper's layers, patches and their positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from omnizip_jax.compression.omnizip_audio import received_attention
from omnizip_jax.models import layer_scan as layers
from omnizip_jax.models.attention import attend
from omnizip_jax.models.backend import Backend
from omnizip_jax.models.config import BaseAudioConfig, BaseVisionConfig
from omnizip_jax.models.linear import Linear
from omnizip_jax.types import VisionFeatures

POSITION_TIMESCALE = 10000.0  # longest wavelength of the sinusoids, over 2 pi
ROPE_THETA = 10000.0  # of the patches' positions
# Logical axes of the audio encoder's parameters that are split over devices, by the end of their
# path.
AUDIO_AXES = {
    "q_proj/weight": ("audio_heads", "embed"),
    "q_proj/bias": ("audio_heads",),
    "k_proj/weight": ("audio_heads", "embed"),
    "k_proj/bias": ("audio_heads",),
    "v_proj/weight": ("audio_heads", "embed"),
    "v_proj/bias": ("audio_heads",),
    "out_proj/weight": ("embed", "audio_heads"),
    "fc1/weight": ("audio_ffn", "embed"),
    "fc1/bias": ("audio_ffn",),
    "fc2/weight": ("embed", "audio_ffn"),
}


class AudioAttention(nn.Module):
    """Self-attention that also returns its queries and keys."""

    config: BaseAudioConfig
    dtype: jnp.dtype
    backend: Backend
    key_bias: bool

    @nn.compact
    def __call__(self, x, mask):
        width, heads = self.config.hidden, (x.shape[0], self.config.heads, self.config.head_dim)
        linear = functools.partial(Linear, width, dtype=self.dtype, backend=self.backend)
        q = linear(name="q_proj")(x).reshape(heads)
        k = linear(name="k_proj", use_bias=self.key_bias)(x).reshape(heads)
        v = linear(name="v_proj")(x).reshape(heads)
        out = attend(q, k, v, mask, self.backend.fused_attention).reshape(x.shape)
        return linear(name="out_proj")(out), q, k


class AudioLayer(nn.Module):
    """One pre-norm layer, with the signature of ``layers.run``: carry in, carry out.

    Queries and keys are part of the carry, so that only the last layer's are returned.
    """

    config: BaseAudioConfig
    dtype: jnp.dtype
    backend: Backend
    key_bias: bool

    @nn.compact
    def __call__(self, carry, index, mask):
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        norm = functools.partial(layer_norm, self.dtype)
        x, _, _ = carry
        attention = AudioAttention(
            self.config, self.dtype, self.backend, self.key_bias, name="self_attn"
        )
        out, q, k = attention(norm("self_attn_layer_norm")(x), mask)
        x = x + out
        out = linear(self.config.ffn, name="fc1")(norm("final_layer_norm")(x))
        x = x + linear(self.config.hidden, name="fc2")(nn.gelu(out, approximate=False))
        return x, q, k


def run_layers(
    module: nn.Module, x: Float[Array, "T D"], real: Bool[Array, " T"], key_bias: bool
) -> tuple[Float[Array, "T D"], Float[Array, "T N H"], Float[Array, "T N H"]]:
    """Pass one attention block through the layers of an encoder.

    Args:
        module: the encoder, which has the layers' parameters under "layers".
        real: rows that are not padding.
        key_bias: the projection of the keys has a bias.

    Returns:
        The hidden states, and the queries and keys of the last layer.
    """
    config = module.config
    # Padding attends to padding, so that no row of the softmax is empty.
    mask = (real[:, None] == real)[None]
    layer = AudioLayer(config, module.dtype, module.backend, key_bias, parent=None)
    heads = jnp.zeros((x.shape[0], config.heads, config.head_dim), module.dtype)
    carry = (x, heads, heads)
    stack = layers.stacked(module, "layers", layer, config.layers, carry, 0, mask)
    return layers.run(
        layer, stack, carry, mask, layers=range(config.layers), backend=module.backend
    )


def layer_norm(dtype: jnp.dtype, name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """A LayerNorm with scale and bias, as in PyTorch."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=dtype, param_dtype=dtype, use_fast_variance=False, name=name
    )


def sinusoids(length: int, channels: int) -> Float[Array, "T D"]:
    """Whisper's absolute positions: sines in the first half of the channels, then cosines."""
    steps = jnp.arange(channels // 2, dtype=jnp.float32)
    frequencies = jnp.exp(-jnp.log(POSITION_TIMESCALE) / (channels // 2 - 1) * steps)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class PatchEmbed(nn.Module):
    """Convolution over patches with a stride of one patch: one matrix."""

    config: BaseVisionConfig
    dtype: jnp.dtype
    backend: Backend
    use_bias: bool

    @nn.compact
    def __call__(self, pixels):
        project = Linear(self.config.hidden, self.use_bias, self.dtype, self.backend, name="proj")
        return project(pixels)


class PatchMerger(nn.Module):
    """Projection of the ``merge**2`` patches of a token to the decoder's width.

    Attributes:
        norm: makes the norm with a name.
        joined: the norm is of the token's patches together, otherwise of each.
    """

    config: BaseVisionConfig
    dtype: jnp.dtype
    backend: Backend
    norm: Callable[[str], nn.Module]
    joined: bool = False

    @nn.compact
    def __call__(self, x):
        linear = functools.partial(Linear, dtype=self.dtype, backend=self.backend)
        width = self.config.hidden * self.config.merge**2
        x = x.reshape(-1, width) if self.joined else x
        x = self.norm("ln_q")(x).reshape(-1, width)
        x = nn.gelu(linear(width, name="mlp_0")(x), approximate=False)
        return linear(self.config.output, name="mlp_2")(x)


def check_patches(patches: UInt8[Array, "patches values"], config: BaseVisionConfig) -> None:
    """Raise ``ValueError`` unless the array holds the patches of whole tokens of one grid."""
    unit = config.merge**2
    if patches.ndim != 2 or patches.shape[0] % unit or patches.shape[1] != config.patch_values:
        raise ValueError(
            f"expected the patches of one grid, shape (slots * {unit}, {config.patch_values}), "
            f"got {patches.shape}; vmap over several grids"
        )


def normalise(
    patches: UInt8[Array, "patches values"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "patches values"]:
    """Normalise pixels with the mean and deviation of each channel (of values to 1), float32."""
    count, values = patches.shape
    channels = patches.reshape(count, len(mean), -1).astype(jnp.float32) / 255
    return ((channels - jnp.array(mean)[:, None]) / jnp.array(std)[:, None]).reshape(count, values)


def patch_positions(cell: Int[Array, "P 2"], merge: int) -> Int[Array, "patches 2"]:
    """Row and column of every patch.

    Args:
        cell: row and column of each token; its ``merge**2`` patches are row-major inside it.
    """
    inside = jnp.stack(jnp.divmod(jnp.arange(merge**2), merge), axis=1)
    return (cell[:, None] * merge + inside).reshape(-1, 2)


def rotary_angles(
    position: Int[Array, "patches 2"], config: BaseVisionConfig
) -> Float[Array, "patches half"]:
    """Rotation angles of queries and keys: half of them by the patch's row, half by its column."""
    count = config.head_dim // 4
    frequencies = ROPE_THETA ** (-jnp.arange(count, dtype=jnp.float32) / count)
    return (position[..., None] * frequencies).reshape(-1, 2 * count)


def token_features(
    q: Float[Array, "patches N H"],
    k: Float[Array, "patches N H"],
    real: Bool[Array, " patches"],
    merge: int,
) -> VisionFeatures:
    """Attention that each token receives, and its keys, from the queries and keys of a layer."""
    of_patches = received_attention(q, real, k, real), k.astype(jnp.float32).mean(1)
    received, keys = (y.reshape(-1, merge**2, *y.shape[1:]).mean(1) for y in of_patches)
    return VisionFeatures(received, keys)
