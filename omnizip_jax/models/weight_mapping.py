"""The parameters of a model as one abstract tree, and the released tensors of each.

The tree follows the released names mechanically (``thinker.audio_tower.X`` is ``audio/X``), so
``parameter_tree`` alone defines the correspondence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.models import decoder
from omnizip_jax.models.config import BaseModelConfig
from omnizip_jax.models.parameters import ArrayInfo, Axes, logical_axes

# Released prefix of each tower.
PREFIXES = {"audio": "audio_tower", "vision": "visual", "text": "model"}

# Equal where they are tied; a checkpoint may contain either or both.
EMBEDDING, HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"


def describe_model(
    config: BaseModelConfig,
    audio: tuple[nn.Module, tuple[int, ...]],
    vision: nn.Module,
    axes: Mapping[str, Mapping[str, Axes]],
) -> Any:
    """The description of every parameter of a model (``ArrayInfo``).

    Args:
        audio: the audio encoder, and the shape of the mel spectrograms of one call.
        vision: the vision encoder.
        axes: logical axes of the encoders' parameters, by the end of their path.
    """
    encoder, mel_shape = audio
    dtype = encoder.dtype

    def init(key: jax.Array, mel: jax.Array, patches: jax.Array, tokens: jax.Array) -> Any:
        lengths = jnp.zeros(mel_shape[:-2], jnp.int32)
        return {
            "audio": encoder.init(key, mel, lengths),
            "vision": vision.init(key, patches, jnp.ones(2, jnp.int32)),
            "text": decoder.Decoder(config.text, dtype).init(key, tokens, method="init_all"),
        }

    patches = (config.vision.merge**2, config.vision.patch_values)
    shapes = (mel_shape, dtype), (patches, jnp.uint8), ((1,), jnp.int32)
    inputs = itertools.starmap(jax.ShapeDtypeStruct, shapes)
    trees = jax.eval_shape(init, jax.random.key(0), *inputs)
    flat: Any = flax.traverse_util.flatten_dict({n: trees[n]["params"] for n in PREFIXES})
    axes = {**axes, "text": decoder.AXES}
    return flax.traverse_util.unflatten_dict(
        {path: _describe(path, leaf, config, axes) for path, leaf in flat.items()}
    )


def abstract(tree: Any) -> Any:
    """The parameters of a description as JAX's abstract arrays."""
    return jax.tree.map(ArrayInfo.abstract, tree)


def array_infos(tree: Any) -> list[ArrayInfo]:
    """The descriptions of a parameter tree in the order of the towers and of the names."""
    flat: Any = flax.traverse_util.flatten_dict(tree)
    return list(flat.values())


def axis_sizes(config: BaseModelConfig) -> dict[str, int]:
    """Number of parts into which each logical axis can be divided."""
    towers = {"": config.text, "audio_": config.audio, "vision_": config.vision}
    sizes = {f"{prefix}heads": tower.heads for prefix, tower in towers.items()}
    sizes |= {f"{prefix}ffn": tower.ffn for prefix, tower in towers.items()}
    text = config.text
    return sizes | {
        "kv_heads": text.kv_heads,
        "vocab": text.vocabulary,
        "experts": text.experts,
        "embedding": text.hidden,
    }


def released_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Released name and shape of every tensor that conversion needs."""
    return {name: info.released_shape for info in array_infos(tree) for name in info.names}


def _describe(
    path: tuple[str, ...],
    leaf: jax.ShapeDtypeStruct,
    config: BaseModelConfig,
    axes: Mapping[str, Mapping[str, Axes]],
) -> ArrayInfo:
    stacked = path[1] in ("layers", "blocks")
    levels = stacked + ("experts" in path)  # a tensor is released for each layer and expert
    inner = leaf.shape[levels:]
    convolution = path[-1] == "kernel"  # released with the axes in reverse order
    released = inner[::-1] if convolution else inner
    if path[:2] == ("vision", "patch_embed") and path[-1] == "weight":
        sizes = config.vision
        released = (inner[0], sizes.channels, sizes.temporal_patch, sizes.patch, sizes.patch)
    names = tuple(_released_name(path, index) for index in np.ndindex(leaf.shape[:levels]))
    logical = logical_axes(path, leaf.ndim, stacked, axes[path[0]])
    return ArrayInfo(path, leaf.shape, leaf.dtype, logical, names, released, convolution)


def _released_name(path: tuple[str, ...], index: tuple[int, ...]) -> str:
    """Name of a tensor; ``index`` is that of the layer, or of the layer and the expert."""
    tower, *middle, last = path
    numbers = iter(index)
    names = []
    for name in middle:
        names.append(re.sub(r"^(mlp|merger_list)_(\d+)$", r"\1.\2", name))
        if name in ("layers", "blocks", "experts"):
            names.append(str(next(numbers)))
    prefix = [] if names == ["lm_head"] else [PREFIXES[tower]]
    return ".".join(["thinker", *prefix, *names, "bias" if last == "bias" else "weight"])
