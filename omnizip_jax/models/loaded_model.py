"""A loaded model, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, Sharding
from jaxtyping import Array

from omnizip_jax.models.parameters import path_of, stored_paths
from omnizip_jax.models.quantized import is_quantized
from omnizip_jax.models.registry import Config
from omnizip_jax.models.sharding import axis_sharding
from omnizip_jax.models.weight_mapping import axis_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FINGERPRINTS: dict[tuple[int, ...], tuple[tuple[weakref.ref, ...], str]] = {}  # by ids of arrays


class Params(struct.PyTreeNode):
    """A loaded model: a pytree of weights, with configuration and tokenizer as static data.

    Attributes:
        weights: {"audio", "vision", "text"}, each the ``params`` of the module of that name.
        fingerprint: a short digest of the loaded values, equal on every machine; "" for weights
            that were not loaded. ``weights_fingerprint`` is that of the present values.
        dtype: of the computation, whatever the weights are stored in.
        mesh: the devices, if there are several.
        quantized_cache: keep keys and values in 8 bits.
        stop_tokens: ids that end an answer (``eos_token_id`` of ``generation_config.json``); empty
            for those of the tokenizer.
    """

    weights: Any
    config: Config = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)
    fingerprint: str = struct.field(pytree_node=False, default="")
    stop_tokens: tuple[int, ...] = struct.field(pytree_node=False, default=())
    dtype: np.dtype = struct.field(pytree_node=False, default=np.dtype(np.float32))
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)
    quantized_cache: bool = struct.field(pytree_node=False, default=False)

    @property
    def cache_dtype(self) -> np.dtype:
        """Type of keys and values in a cache."""
        return np.dtype(np.int8) if self.quantized_cache else self.dtype

    def sharding(self, axes: Sequence[str | None] = ()) -> Sharding:
        """Placement of an array with these logical axes beside the weights."""
        if self.mesh is None:
            return jax.tree.leaves(self.weights)[0].sharding
        return axis_sharding(axes, self.mesh, axis_sizes(self.config))

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer: as the checkpoint states, or end of turn and end of text."""
        tokenizer: Any = self.tokenizer
        names = ["<|im_end|>", "<|endoftext|>"]
        return self.stop_tokens or tuple(tokenizer.convert_tokens_to_ids(names))


def precision(weights: Any) -> str:
    """Type of the matrices of the decoder's layers: float32, bfloat16, int8 or int4."""
    matrix = weights["text"]["layers"]["self_attn"]["o_proj"]["weight"]
    return f"int{matrix.bits}" if is_quantized(matrix) else matrix.dtype.name


def check_params(params: Params) -> None:
    """Raise ``ValueError`` unless ``params`` is a loaded model."""
    if not isinstance(params, Params):
        raise ValueError(
            f"params must be what omnizip_jax.load returns, got {type(params).__name__}"
        )


def weights_fingerprint(params: Params) -> str:
    """A digest of all values of the weights, computed once; that of the checkpoint where possible.

    It compares arrays by identity before it computes: weights that replaced the loaded ones have
    another fingerprint, equal copies have the same.
    """
    flat = jax.tree_util.tree_leaves_with_path(params.weights)
    leaves = [leaf for _, leaf in flat]
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return params.fingerprint
    refs, known = _FINGERPRINTS.get(tuple(map(id, leaves)), ((), ""))
    if not refs or any(ref() is not leaf for ref, leaf in zip(refs, leaves, strict=True)):
        known = digest(sorted(text for path, leaf in flat for text in _describe_stored(path, leaf)))
        register_fingerprint(params.weights, known)
    return known


def register_fingerprint(weights: Any, value: str) -> None:
    """Remember the fingerprint of weights for as long as their arrays exist."""
    leaves = jax.tree.leaves(weights)
    key = tuple(map(id, leaves))
    _FINGERPRINTS[key] = tuple(map(weakref.ref, leaves)), value
    weakref.finalize(leaves[0], _FINGERPRINTS.pop, key, None).atexit = False


def describe_array(name: str, array: Array | np.ndarray) -> str:
    """Name, dtype, shape and checksum of the values of an array, of which fingerprints are made."""
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # bfloat16 is no buffer
    return f"{name} {array.dtype} {tuple(array.shape)} {zlib.crc32(values.data):08x}"


def _describe_stored(keys: Any, leaf: Array) -> Iterator[str]:
    """Descriptions of a parameter's arrays in a checkpoint."""
    path = path_of(keys)
    paths = stored_paths(path, len(leaf))
    for name, array in zip(paths, [leaf] if paths == [path] else leaf, strict=True):
        yield describe_array("/".join(name), array)


def digest(parts: Iterable[str]) -> str:
    """A short hash of several texts."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
