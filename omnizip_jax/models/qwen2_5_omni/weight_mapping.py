"""Parameters of the model as one abstract tree, and the released tensors of each leaf.

The tree follows the released names mechanically (``thinker.audio_tower.X`` is ``audio/X``), so
``released_leaves`` alone defines the correspondence.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.models.decoder import Decoder
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder

TOWERS = {"audio": "audio_tower", "vision": "visual", "text": "model"}

# Equal where they are tied; a checkpoint may contain either or both.
EMBEDDING, HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"

# Tensors of released files that are not used: speech output, and what is computed.
LEFT_OUT = re.compile(
    r"(?P<part>talker|token2wav)\..*"
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"
    r"|.*\.(inv_freq|positional_embedding)"
)


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """Names, shapes and dtypes of all parameters, from which everything else derives."""
    key = jax.random.key(0)
    audio, vision = config.audio, config.vision
    dtype = jnp.dtype(dtype)

    def shape(*sizes: int, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    mel = shape(audio.mel_bins, 2 * audio.n_window, dtype=dtype)
    patches = shape(vision.merge**2, vision.patch_values, dtype=jnp.uint8)

    def init_decoder(key: jax.Array, tokens: jax.Array) -> Any:
        return Decoder(config.text, dtype).init(key, tokens, method=Decoder.init_all)

    trees = {
        "audio": jax.eval_shape(AudioEncoder(audio, dtype).init, key, mel, shape()),
        "vision": jax.eval_shape(VisionEncoder(vision, dtype).init, key, patches, shape(2)),
        "text": jax.eval_shape(init_decoder, key, shape(1)),
    }
    return {name: tree["params"] for name, tree in trees.items()}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter and the released tensors from which it is built.

    Attributes:
        path: its path in the tree, for example ``("audio", "layers", "fc1", "kernel")``.
        shape: its shape; stacked leaves have a leading axis of layers.
        names: the released tensors, one for each layer, or a single one.
        released_shape: shape of each released tensor.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    released_shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return _is_stacked(self.path)

    def views(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each released name with its part of ``array``, axes in the released order."""
        for i, name in enumerate(self.names):
            part = array[i] if self.stacked else array
            yield name, part.T if self.path[-1] == "kernel" else part


def released_leaves(config: ModelConfig) -> list[Leaf]:
    """All parameters of the model with their released names and shapes."""
    flat: Any = flax.traverse_util.flatten_dict(abstract_params(config))
    return [_leaf(path, leaf.shape, config) for path, leaf in flat.items()]


def released_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Released name and shape of every tensor that conversion needs."""
    return {name: leaf.released_shape for leaf in released_leaves(config) for name in leaf.names}


def _is_stacked(path: tuple[str, ...]) -> bool:
    return path[1] in ("layers", "blocks")


def _leaf(path: tuple[str, ...], shape: tuple[int, ...], config: ModelConfig) -> Leaf:
    inner = shape[1:] if _is_stacked(path) else shape
    if path == ("vision", "patch_embed", "proj", "kernel"):
        vision = config.vision
        inner = (vision.channels, vision.temporal_patch, vision.patch, vision.patch, inner[1])
        released = (inner[-1], *inner[:-1])
    else:
        # Flax's kernels [in, out] are released as [out, in], convolutions [width, in, out] as
        # [out, in, width]: the axes reversed. All others are equal, the decoder's included.
        released = inner[::-1] if path[-1] == "kernel" else inner
    layers = range(shape[0]) if _is_stacked(path) else (None,)
    return Leaf(path, shape, tuple(_released_name(path, layer) for layer in layers), released)


def _released_name(path: tuple[str, ...], layer: int | None) -> str:
    tower, *middle, last = path
    if layer is not None:
        middle.insert(1, str(layer))
    middle = [re.sub(r"^mlp_(\d+)$", r"mlp.\1", name) for name in middle]
    prefix = [] if middle == ["lm_head"] else [TOWERS[tower]]
    return ".".join(["thinker", *prefix, *middle, "bias" if last == "bias" else "weight"])
