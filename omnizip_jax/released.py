"""The released layout: how its tensors are named and shaped, where they lie, whether all are there.

Our tree follows the released names mechanically (``thinker.audio_tower.X`` is ``audio/X``), so one
function, ``released_leaves``, says which tensors every parameter is made of.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from omnizip_jax.checkpoint import abstract_params
from omnizip_jax.config import ModelConfig

TOWERS = {"audio": "audio_tower", "vision": "visual", "text": "model"}
DTYPES = {"BF16": jnp.bfloat16, "F16": jnp.float16, "F32": jnp.float32}

# In released files and of no use here: speech output, and what can be computed.
LEFT_OUT = re.compile(
    r"(?P<part>talker|token2wav)\..*"
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"
    r"|.*\.(inv_freq|positional_embedding)"
)

SLICE_BYTES = 2**22  # read at once; small slices also transpose faster, inside the CPU's cache


class ConversionError(ValueError):
    """The source cannot be converted, or the target cannot be written; says why."""


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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a released tensor lies."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def slices(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The tensor, some rows of its first axis at a time."""
        row_bytes = 4 * math.prod(self.shape[1:])
        step = max(1, SLICE_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            # A handle for each slice: what was read through it stays mapped while it is open.
            with safe_open(self.file, framework="numpy") as handle:
                values = handle.get_slice(self.key)[rows]
            yield rows, values


def find_tensors(source: Path) -> dict[str, Tensor]:
    """Every tensor in the safetensors files of a folder, by its released name.

    Saves of the thinker alone may lack the ``thinker.`` in front; it is added.

    Raises:
        ConversionError: no weights, shards missing or damaged.
    """
    tensors = {}
    problems = []
    for file in _shards(source):
        try:
            with safe_open(file, framework="numpy") as handle:
                for key in handle.keys():  # noqa: SIM118 (a handle, not a dict)
                    data = handle.get_slice(key)
                    name = re.sub(r"^(?!thinker\.|talker\.|token2wav\.)", "thinker.", key)
                    shape = tuple(data.get_shape())
                    tensors[name] = Tensor(file, key, shape, data.get_dtype())
        except FileNotFoundError:
            problems.append(f"{file.name}: named in the index, but not there")
        except (SafetensorError, OSError) as error:
            problems.append(f"{file.name}: damaged or not fully downloaded ({error})")
    if problems:
        raise ConversionError(
            listing(f"{source}: unreadable shards. Download them again", problems)
        )
    return tensors


def _shards(source: Path) -> list[Path]:
    index, single = source / "model.safetensors.index.json", source / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise ConversionError(
            f"{source}: no weights here; expected {index.name} with its shards, or {single.name}"
        )
    try:
        files = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index}: damaged index ({error})") from error
    return [source / file for file in sorted(files)]


def check_tensors(leaves: list[Leaf], tensors: Mapping[str, Tensor]) -> collections.Counter[str]:
    """Compare what is needed with what is there; returns how many tensors are left out, by part.

    Raises:
        ConversionError: lists every missing, surplus or unfit tensor by its released name.
    """
    expected = {name: leaf.released_shape for leaf in leaves for name in leaf.names}
    problems = [
        f"missing   {name}: expected shape {list(shape)}"
        for name, shape in expected.items()
        if name not in tensors
    ]
    left_out: collections.Counter[str] = collections.Counter()
    for name, tensor in tensors.items():
        known = LEFT_OUT.fullmatch(name)
        if name in expected:
            if tensor.shape != expected[name]:
                wanted = list(expected[name])
                problems.append(f"misshapen {name}: expected {wanted}, found {list(tensor.shape)}")
            if tensor.dtype not in DTYPES:
                problems.append(
                    f"mistyped  {name}: expected {', '.join(DTYPES)}, found {tensor.dtype}"
                )
        elif known:
            left_out[known["part"] or name] += 1
        else:
            problems.append(f"surplus   {name}: found shape {list(tensor.shape)}")
    if problems:
        raise ConversionError(listing("the tensors do not fit config.json", problems))
    return left_out


def listing(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title} ({len(lines)}):", *(f"  {line}" for line in lines)])


def leaf_dtype(leaf: Leaf, tensors: Mapping[str, Tensor]) -> np.dtype:
    """The type a leaf is stored in; the widest, should its layers differ."""
    found = {DTYPES[tensors[name].dtype] for name in leaf.names}
    return np.dtype(functools.reduce(jnp.promote_types, found))
