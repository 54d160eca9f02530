"""Reductions inside the decoder: after some layers, only some of the tokens go on.

A prefill that meets stages leaves a cache of segments, one for the layers up to each stage and one
for the rest; every segment has its own length. Tokens that stay keep their order and positions.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.types import TokenKind


class Tokens(struct.PyTreeNode):
    """What the tokens of a sequence are; the first ``count`` are real, padding follows.

    Attributes:
        positions: TMRoPE positions (time, height, width).
        kind: ``TokenKind`` of each token.
        window: the window that a token of media belongs to.
        count: how many are real.
        windows: static bound on the windows.
    """

    positions: Int[Array, "3 T"]
    kind: Int[Array, " T"]
    window: Int[Array, " T"]
    count: Int[Array, ""]
    windows: int = struct.field(pytree_node=False, default=1)

    @property
    def media(self) -> Bool[Array, " T"]:
        """Where the real tokens of media are."""
        return (self.kind >= TokenKind.AUDIO) & (jnp.arange(self.kind.shape[0]) < self.count)

    def take(self, index: Int[Array, " S"], count: Int[Array, ""]) -> Tokens:
        """Those at ``index``, of which ``count`` are real."""
        return self.replace(
            positions=self.positions[:, index],
            kind=self.kind[index],
            window=self.window[index],
            count=count,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One reduction; frozen and hashable, static under jit. A method's stages derive from it.

    Attributes:
        after: decoder layers that run before it, at least one.
        ahead: the attention that it sees is what the next layer would have, by its own norm and
            projections; otherwise what the last layer had.
        prunes_past: keys and values of the layers before it are reduced too, so that later turns
            cannot look back at what left.
    """

    after: int
    ahead: bool = False
    prunes_past: bool = False

    def bound(self, text: int, media: int) -> int:
        """Static slots for what goes on, of so many tokens of text and at most so many of media."""
        raise NotImplementedError

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        """The tokens that go on, of those that are real; at most ``bound``.

        Args:
            attention: of the last token's query to all tokens, after the softmax, of every head.
            tokens: what they are.
        """
        raise NotImplementedError
