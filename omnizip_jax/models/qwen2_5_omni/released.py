"""The released layout: how the tensors are named and shaped.

Our tree follows the released names mechanically (``thinker.audio_tower.X`` is ``audio/X``), so one
function, ``released_leaves``, says which tensors every parameter is made of.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import numpy as np

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.parameters import abstract_params

TOWERS = {"audio": "audio_tower", "vision": "visual", "text": "model"}

# Tied, they are one; a checkpoint may hold either or both.
EMBEDDING, HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"

# In released files and of no use here: speech output, and what can be computed.
LEFT_OUT = re.compile(
    r"(?P<part>talker|token2wav)\..*"
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"
    r"|.*\.(inv_freq|positional_embedding)"
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of our tree, and the released tensors that it is made of.

    Attributes:
        path: its place in the tree, for example ``("audio", "layers", "fc1", "kernel")``.
        shape: ours; stacked leaves have a leading axis of layers.
        names: the released tensors, one for each layer, or just one.
        released_shape: of each of them.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    released_shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return _is_stacked(self.path)

    def views(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each released name with the part of ``array`` it fills, axes in the released order."""
        for i, name in enumerate(self.names):
            part = array[i] if self.stacked else array
            yield name, part.T if self.path[-1] == "kernel" else part


def released_leaves(config: ModelConfig) -> list[Leaf]:
    """Every parameter of the model, with the released names and shapes it comes from."""
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
        # Flax's kernels [in, out] are stored [out, in], convolutions [width, in, out] as
        # [out, in, width]: the axes reversed. Everything else is as it is, the decoder's
        # weights among it.
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
