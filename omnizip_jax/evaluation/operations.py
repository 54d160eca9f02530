"""Floating-point operations of the decoder, and what its cache holds.

Stages inside the decoder give every layer its own number of tokens: ``tokens`` has one entry a
layer. A multiplication and an addition are two operations.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnizip_jax.models.config import TextConfig

DECODED = 100  # the tokens of an answer, R in the paper's eq. 9


def layer_weights(config: TextConfig) -> int:
    """Weights that a token meets in a layer: grouped-query attention, three SwiGLU matrices."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return config.hidden * (2 * queries + 2 * keys + 3 * config.ffn)


def decode_weights(config: TextConfig) -> int:
    """Weights read to make one token: the layers' and the output matrix."""
    return config.layers * layer_weights(config) + config.hidden * config.vocabulary


def layer_operations(config: TextConfig, tokens: int) -> float:
    """One layer over a whole prompt; a token attends to itself and to those before it."""
    pairs = tokens * (tokens + 1) / 2
    attention = 4.0 * pairs * config.heads * config.head_dim  # scores, and the sum of the values
    return 2.0 * layer_weights(config) * tokens + attention


def prefill_operations(config: TextConfig, tokens: Sequence[int]) -> float:
    """True count of a prompt, text included, up to the logits of the first token."""
    layers = sum(layer_operations(config, count) for count in tokens)
    return layers + 2.0 * config.hidden * config.vocabulary


def paper_operations(config: TextConfig, tokens: Sequence[int], decoded: int = DECODED) -> float:
    """The paper's eq. 9 over the media tokens: full attention, two matrices in the network.

    ``4 n d^2 + 2 n^2 d + 2 n d m`` in a layer, and ``4 d^2 + 2 d m + 2 d (n + i)`` there for the
    i-th of ``decoded`` tokens; a multiply-add is one.

    Args:
        tokens: media tokens in each layer.
    """
    d, m = config.hidden, config.ffn
    matrices = 4.0 * d**2 + 2.0 * d * m
    prefill = sum(n * matrices + 2.0 * n**2 * d for n in tokens)
    attended = sum(decoded * n + decoded * (decoded + 1) / 2 for n in tokens)
    return prefill + decoded * len(tokens) * matrices + 2.0 * d * attended


def cache_values(config: TextConfig, tokens: Sequence[int]) -> int:
    """Numbers in the keys and values of so many tokens in each layer."""
    return 2 * sum(tokens) * config.kv_heads * config.head_dim
