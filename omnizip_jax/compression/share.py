"""A share of all media tokens, held to the token: over a clip, and at every moment of a stream."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from omnizip_jax.compression.counts import as_fraction, lookup, nearest, round_share
from omnizip_jax.compression.method import Counts, Method, check_share

# The paper's two settings of (rho_audio, rho_video) are (0.3, 0.6) and (0.4, 0.7), section 4.1.
PAPER_GAP = 0.3


@dataclasses.dataclass(frozen=True)
class Share(Method):
    """A method that can also be set by what it keeps.

    Args:
        keep: kept share of all media tokens of a clip, met exactly (half to even); settings that
            say how much of a modality stays then give way. None: as those settings say.

    Raises:
        ValueError: not a share.
    """

    keep: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.keep is not None:
            check_share(f"{type(self).__name__}.keep", self.keep)

    def kept(self, tokens: Int[Array, ""], slots: int) -> Int[Array, ""]:
        """``keep`` of the valid tokens, on the device."""
        assert self.keep is not None
        return lookup(partial(round_share, as_fraction(self.keep)), tokens, slots)

    def kept_on_host(self, audio_counts: Counts, video_counts: Counts) -> int:
        """``keep`` of the valid tokens, on the host."""
        assert self.keep is not None
        return int(round_share(as_fraction(self.keep), np.sum(audio_counts) + np.sum(video_counts)))


def salient_share(
    total: Any, audio: Any, video: Any, anchors: Any = 0, gap: float = PAPER_GAP
) -> Any:
    """``1 - rho_audio`` on the line ``rho_video = rho_audio + gap``, anchors in addition.

    Solves ``(1 - rho_audio) audio + anchors + (1 - rho_audio - gap) video = total``, numbers or
    arrays; may lie outside 0 to 1.
    """
    tokens = audio + video
    return (total - anchors + gap * video) / (tokens + (tokens == 0))


def split(
    total: Int[Array, ""],
    audio: Int[Array, ""],
    video: Int[Array, ""],
    anchors: Int[Array, ""] | int = 0,
    gap: float = PAPER_GAP,
) -> Int[Array, ""]:
    """How many of ``total`` kept tokens are audio, along the line through the paper's settings.

    The audio tokens (``salient_share``) are rounded, and the video takes exactly the rest. Where a
    modality has too few tokens for its part, the other takes over.

    Args:
        total: tokens to keep.
        audio, video: tokens that exist.
        anchors: kept audio tokens that ``rho_audio`` does not count; they are in the result.
        gap: between the two rates.
    """
    share = salient_share(total, audio, video, anchors, gap)
    count = anchors + nearest(share * audio)
    least, most = jnp.maximum(total - video, anchors), jnp.minimum(total, audio)
    return jnp.clip(count, least, jnp.maximum(most, least))


class RunningShare(struct.PyTreeNode):
    """A share of all tokens of a stream, rounded half to even at every moment.

    Attributes:
        deficit: tokens still to take, in units of 1/denominator of the share.
        odd: whether an odd number was taken so far.
    """

    deficit: Int[Array, ""]
    odd: Bool[Array, ""]

    @classmethod
    def even(cls) -> RunningShare:
        """Before the first window."""
        return cls(jnp.int32(0), jnp.bool_(False))

    def advance(
        self, tokens: Int[Array, ""], share: Fraction
    ) -> tuple[RunningShare, Int[Array, ""]]:
        """``tokens`` more have come; how many of them to take."""
        deficit, unit = self.deficit + share.numerator * tokens, share.denominator
        down, twice_rest = deficit // unit, 2 * (deficit % unit)
        up = (twice_rest > unit) | ((twice_rest == unit) & ((down % 2 == 1) ^ self.odd))
        count = down + up
        return RunningShare(deficit - count * unit, self.odd ^ (count % 2 == 1)), count


def most_at_once(share: Fraction, slots: int) -> int:
    """The most that a ``RunningShare`` takes of a window with so many slots."""
    return min(slots * share.numerator // share.denominator + 1, slots)
