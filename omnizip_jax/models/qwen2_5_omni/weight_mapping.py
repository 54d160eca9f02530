"""The parameters of the model as one abstract tree, and the released tensors of each.

The tree follows the released names mechanically (``thinker.audio_tower.X`` is ``audio/X``), so
``parameter_tree`` alone defines the correspondence.
"""

from __future__ import annotations

import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from omnizip_jax.models import decoder
from omnizip_jax.models.parameters import ArrayInfo, logical_axes
from omnizip_jax.models.qwen2_5_omni import audio, vision
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig

# Released prefix of each tower, and the logical axes of its parameters.
TOWERS = {
    "audio": ("audio_tower", audio.AXES),
    "vision": ("visual", vision.AXES),
    "text": ("model", decoder.AXES),
}

# Equal where they are tied; a checkpoint may contain either or both.
EMBEDDING, HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"

# Tensors of released files that are not used: speech output, and what is computed.
LEFT_OUT = re.compile(
    r"(?P<part>talker|token2wav)\..*"
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"
    r"|.*\.(inv_freq|positional_embedding)"
)


def parameter_tree(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """The description of every parameter (``ArrayInfo``), from which everything else derives."""
    dtype = jnp.dtype(dtype)

    def shape(*sizes: int, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def init(key: jax.Array, mel: jax.Array, patches: jax.Array, tokens: jax.Array) -> Any:
        size = jnp.ones(2, jnp.int32)
        return {
            "audio": audio.AudioEncoder(config.audio, dtype).init(key, mel, 0),
            "vision": vision.VisionEncoder(config.vision, dtype).init(key, patches, size),
            "text": decoder.Decoder(config.text, dtype).init(key, tokens, method="init_all"),
        }

    mel = shape(config.audio.mel_bins, 2 * config.audio.n_window, dtype=dtype)
    patches = shape(config.vision.merge**2, config.vision.patch_values, dtype=jnp.uint8)
    trees = jax.eval_shape(init, jax.random.key(0), mel, patches, shape(1))
    flat: Any = flax.traverse_util.flatten_dict({n: trees[n]["params"] for n in TOWERS})
    return flax.traverse_util.unflatten_dict(
        {path: _describe(path, leaf, config) for path, leaf in flat.items()}
    )


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """The parameters as JAX's abstract arrays."""
    return jax.tree.map(ArrayInfo.abstract, parameter_tree(config, dtype))


def array_infos(tree: Any) -> list[ArrayInfo]:
    """The descriptions of a parameter tree in the order of the towers and of the names."""
    flat: Any = flax.traverse_util.flatten_dict(tree)
    return list(flat.values())


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """Number of parts into which each logical axis can be divided."""
    towers = {"": config.text, "audio_": config.audio, "vision_": config.vision}
    sizes = {f"{prefix}heads": tower.heads for prefix, tower in towers.items()}
    sizes |= {f"{prefix}ffn": tower.ffn for prefix, tower in towers.items()}
    return sizes | {"kv_heads": config.text.kv_heads, "vocab": config.text.vocabulary}


def released_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Released name and shape of every tensor that conversion needs."""
    infos = array_infos(parameter_tree(config))
    return {name: info.released_shape for info in infos for name in info.names}


def _describe(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct, config: ModelConfig) -> ArrayInfo:
    stacked = path[1] in ("layers", "blocks")
    inner = leaf.shape[int(stacked) :]
    convolution = path[-1] == "kernel"  # [width, in, out], released as [out, in, width]
    released = inner[::-1] if convolution else inner
    if path[:2] == ("vision", "patch_embed"):
        sizes = config.vision
        released = (inner[0], sizes.channels, sizes.temporal_patch, sizes.patch, sizes.patch)
    axes = logical_axes(path, leaf.ndim, stacked, TOWERS[path[0]][1])
    layers = range(leaf.shape[0]) if stacked else (None,)
    names = tuple(_released_name(path, layer) for layer in layers)
    return ArrayInfo(path, leaf.shape, leaf.dtype, axes, names, released, convolution)


def _released_name(path: tuple[str, ...], layer: int | None) -> str:
    tower, *middle, last = path
    if layer is not None:
        middle.insert(1, str(layer))
    middle = [re.sub(r"^mlp_(\d+)$", r"mlp.\1", name) for name in middle]
    prefix = [] if middle == ["lm_head"] else [TOWERS[tower][0]]
    return ".".join(["thinker", *prefix, *middle, "bias" if last == "bias" else "weight"])
