"""A loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct

from omnizip_jax.models.families import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Params(struct.PyTreeNode):
    """A loaded model: a pytree of weights, with configuration and tokenizer as static data.

    Attributes:
        weights: {"audio", "vision", "text"}, each the ``params`` of the module of that name.
        fingerprint: a short digest of the values that were loaded, the same wherever and whenever
            the same weights are converted; "" for weights made by hand. It tells whether a context
            or stream belongs to these weights without fetching any. Compiled functions take
            ``weights``, so it belongs to no program's key.
    """

    weights: Any
    config: Config = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)
    fingerprint: str = struct.field(pytree_node=False, default="")
