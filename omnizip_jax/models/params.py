"""A loaded model, and what tells it from others."""

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
        fingerprint: a short digest of the values that were loaded, the same wherever and whenever
            the same weights are converted; "" for weights made by hand. It tells whether a context
            or stream belongs to these weights without fetching any. Compiled functions take
            ``weights``, so it belongs to no program's key.
    """

    weights: Any
    config: Config = struct.field(pytree_node=False)
    tokenizer: PreTrainedTokenizerBase = struct.field(pytree_node=False)
    fingerprint: str = struct.field(pytree_node=False, default="")


def check_params(params: Params) -> None:
    """Raise ``ValueError`` unless it is a loaded model."""
    if not isinstance(params, Params):
        raise ValueError(
            f"params must be what omnizip_jax.load returns, got {type(params).__name__}"
        )


class WeightsMark:
    """What tells weights from others: the fingerprint they came with, and a few of their numbers.

    The numbers are fetched from the device only where other weights, or a save, ask for them.
    """

    def __init__(self, params: Params):
        self._leaf = _leaf(params)
        self.fingerprint = params.fingerprint

    @functools.cached_property
    def values(self) -> tuple[float, ...]:
        """A few of the weights."""
        return _values(self._leaf)

    def matches(self, params: Params) -> bool:
        leaf = _leaf(params)
        if leaf is self._leaf and params.fingerprint == self.fingerprint:
            return True
        return self.is_like(params.fingerprint, _values(leaf))

    def is_like(self, fingerprint: str, values: Sequence[float]) -> bool:
        """Whether another mark is of the same weights; those made by hand have no fingerprint."""
        known = {self.fingerprint, fingerprint} - {""}
        return len(known) < 2 and self.values == tuple(values)


def _leaf(params: Params) -> Array:
    return params.weights["text"]["norm"]["scale"]


def _values(leaf: Array) -> tuple[float, ...]:
    return tuple(np.asarray(leaf[:8], np.float32).tolist())
