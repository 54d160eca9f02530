"""A loaded model, and the identity of its weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import struct
from jaxtyping import Array

from omnizip_jax.models.registry import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Params(struct.PyTreeNode):
    """A loaded model: a pytree of weights, with configuration and tokenizer as static data.

    Attributes:
        weights: {"audio", "vision", "text"}, each the ``params`` of the module of that name.
        fingerprint: a short digest of the loaded values, equal on every machine; "" for weights
            that were not loaded. It identifies the weights of a context or stream without fetching
            them from the device. Compiled functions take ``weights``, not the fingerprint.
    """

    weights: Any
    config: Config = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)
    fingerprint: str = struct.field(pytree_node=False, default="")


def check_params(params: Params) -> None:
    """Raise ``ValueError`` unless ``params`` is a loaded model."""
    if not isinstance(params, Params):
        raise ValueError(
            f"params must be what omnizip_jax.load returns, got {type(params).__name__}"
        )


class WeightsIdentity:
    """Identity of weights: their fingerprint and a few of their values.

    The values are fetched from the device only to compare with other weights or to save.
    """

    def __init__(self, params: Params):
        self._leaf = _leaf(params)
        self.fingerprint = params.fingerprint

    @functools.cached_property
    def values(self) -> tuple[float, ...]:
        """A few of the weights."""
        return _values(self._leaf)

    def matches(self, params: Params) -> bool:
        """Whether ``params`` holds these weights."""
        leaf = _leaf(params)
        if leaf is self._leaf and params.fingerprint == self.fingerprint:
            return True
        return self.is_like(params.fingerprint, _values(leaf))

    def is_like(self, fingerprint: str, values: Sequence[float]) -> bool:
        """Whether another identity equals this one; an empty fingerprint equals any."""
        known = {self.fingerprint, fingerprint} - {""}
        return len(known) < 2 and self.values == tuple(values)


def _leaf(params: Params) -> Array:
    return params.weights["text"]["norm"]["scale"]


def _values(leaf: Array) -> tuple[float, ...]:
    return tuple(np.asarray(leaf[:8], np.float32).tolist())
