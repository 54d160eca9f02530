"""Pruning stages inside the decoder: after some layers, only some of the tokens are kept.

A prefill with stages leaves a cache of segments, one for the layers up to each stage and one for
the rest; every segment has its own length. Kept tokens retain their order and positions, and are
packed to the front of a smaller array, so that pruning saves time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

from omnizip_jax.types import TokenKind

PUBLISHED_LAYERS = 28  # of the decoders that the methods' settings were published for


def scaled_layer(after: int, layers: int) -> int:
    """``after`` of 28 layers, in proportion in a decoder of ``layers`` layers; at least one."""
    return max(1, round(after * layers / PUBLISHED_LAYERS))


def check_after(name: str, after: int) -> None:
    """Raise ``ValueError`` unless a stage can follow ``after`` of 28 layers."""
    if not 1 <= after < PUBLISHED_LAYERS:
        raise ValueError(f"{name} must be from 1 to {PUBLISHED_LAYERS - 1}, got {after}")


def stage_layer(name: str, after: int, layers: int) -> int:
    """``scaled_layer`` of a stage.

    Raises:
        ValueError: no layer of the decoder is left after it.
    """
    layer = scaled_layer(after, layers)
    if layer >= layers:
        raise ValueError(
            f"{name}={after} of {PUBLISHED_LAYERS} layers is layer {layer} in a decoder of "
            f"{layers}, after which none is left: take a smaller one, or a deeper decoder"
        )
    return layer


def check_stages(stages: Sequence[Stage], layers: int) -> None:
    """Raise ``ValueError`` unless the stages are in order and inside a decoder with ``layers``."""
    cuts = [stage.after for stage in stages]
    if sorted({0, layers, *cuts}) != [0, *cuts, layers]:
        raise ValueError(
            f"expected stages after increasing layers between 1 and {layers - 1}, the decoder has "
            f"{layers} layers; got stages after {cuts}"
        )


class Tokens(struct.PyTreeNode):
    """Metadata of the tokens of a sequence; the first ``count`` are valid, padding follows.

    Attributes:
        positions: TMRoPE positions (time, height, width).
        kind: ``TokenKind`` of each token.
        window: index of the window of each media token.
        count: number of valid tokens.
        windows: static bound on the number of windows.
    """

    positions: Int[Array, "3 T"]
    kind: Int[Array, " T"]
    window: Int[Array, " T"]
    count: Int[Array, ""]
    windows: int = struct.field(pytree_node=False, default=1)

    @property
    def media(self) -> Bool[Array, " T"]:
        """Mask of the valid media tokens."""
        return (self.kind >= TokenKind.AUDIO) & (jnp.arange(self.kind.shape[0]) < self.count)

    def gather(self, index: Int[Array, " S"], count: Int[Array, ""]) -> Tokens:
        """The tokens at ``index``, the first ``count`` of them valid."""
        return self.replace(
            positions=self.positions[:, index],
            kind=self.kind[index],
            window=self.window[index],
            count=count,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pruning stage; frozen and hashable, static under jit. A method's stages derive from it.

    Attributes:
        after: decoder layers that run before it, at least one.
        ahead: use the attention that the next layer would have, by its own norm and projections;
            otherwise that of the last layer.
        prunes_past: discard keys and values of the layers before it too, so that later turns
            cannot attend to discarded tokens.
    """

    after: int
    ahead: bool = False
    prunes_past: bool = False

    def bound(self, text: int, media: int) -> int:
        """Static bound on the kept tokens, for ``text`` text and at most ``media`` media tokens."""
        raise NotImplementedError

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        """Mask of the kept tokens among the valid ones; at most ``bound``.

        Args:
            attention: of the last token's query to all tokens, after the softmax, of every head.
            tokens: metadata of the tokens.
        """
        raise NotImplementedError


def front(keep: Bool[Array, " N"], capacity: int) -> tuple[Int[Array, " C"], Bool[Array, " C"]]:
    """Indices of the kept tokens, in order, for the front of ``capacity`` slots.

    Returns:
        An index into the tokens for every slot (0 in unused ones), and which slots are used.
    """
    (index,) = jnp.nonzero(keep, size=capacity, fill_value=0)
    return index, jnp.arange(capacity) < jnp.sum(keep)


def unpacked(values: Num[Array, " C"], keep: Bool[Array, " N"]) -> Num[Array, " N"]:
    """Values of packed tokens at the places of the tokens, 0 for those that were not kept."""
    place = jnp.cumsum(keep) - 1
    there = keep & (place < len(values))
    return jnp.where(there, values[jnp.clip(place, 0, len(values) - 1)], 0)
