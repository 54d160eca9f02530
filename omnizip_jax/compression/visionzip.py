"""VisionZip (arXiv 2412.04467, repository dvlab-research/VisionZip), on Qwen's vision encoder.

Tokens that receive much attention in the last block of full attention are kept unchanged; the
others are merged into a few, by their keys.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.counts import apportion, as_fraction, round_share, top_mask
from omnizip_jax.compression.method import Count, check_shares
from omnizip_jax.compression.omnizip_audio import sample_anchors
from omnizip_jax.compression.omnizip_video import over_windows, scan_windows
from omnizip_jax.compression.per_modality import ModalitySelection, Rates, vision_of
from omnizip_jax.compression.similarity import cosines
from omnizip_jax.types import VisionFeatures


@dataclasses.dataclass(frozen=True)
class VisionZip(Rates):
    """Dominant video tokens by attention received, and contextual tokens that merge the others.

    Of n tokens ``contextual`` n are contextual: every m-th of those that are not dominant. Each
    remaining token is assigned to the one with the most similar key; a contextual token becomes
    itself plus the mean of its members. The audio is kept whole without ``keep``.

    Args:
        contextual: share of the video tokens, within the share that is kept.
        per_window: select in every window by itself, in proportion to its tokens, and not over the
            whole clip; the method can then follow a stream, if the audio is kept whole.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"vision"})

    rho_audio: float = 0.0
    rho_video: float = 0.6
    contextual: float = 0.05
    per_window: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "contextual")

    @property
    def streams(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.per_window and self.rho_audio == 0 and self.keep is None

    def select_video(self, windows, count, key, audio_keep):
        vision = vision_of(windows)
        if not self.per_window:
            return self.select_together(windows.video, windows.video_mask, vision, count)
        counts = apportion(count, jnp.sum(windows.video_mask, (1, 2)))

        def one(i):
            arrays = jax.tree.map(lambda x: x[i][None], (windows.video, windows.video_mask, vision))
            video, mask, features = arrays
            selection = self.select_together(video, mask, features, counts[i])
            return jax.tree.map(lambda x: x[0], selection)

        return over_windows(one, jnp.arange(len(counts)))

    def select_together(
        self,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        vision: VisionFeatures,
        count: Count,
    ) -> ModalitySelection:
        """Select ``count`` of the video tokens of all windows together."""
        valid, scores = mask.reshape(-1), vision.received.reshape(-1)
        share = as_fraction(self.contextual)
        slots = round_share(share, valid.size)
        merged = jnp.minimum(round_share(share, jnp.sum(valid)), count)
        dominant = top_mask(scores, valid, count - merged)
        others = valid & ~dominant
        if slots == 0:
            return ModalitySelection(dominant.reshape(mask.shape))
        target, filled, targets = sample_anchors(others, merged, slots)
        features = add_means(
            video, vision.keys, (others & ~targets).reshape(mask.shape), target, filled
        )
        keep = (dominant | targets).reshape(mask.shape)
        return ModalitySelection(keep, features)


def add_means(
    video: Float[Array, "W G P D"],
    keys: Float[Array, "W G P H"],
    others: Bool[Array, "W G P"],
    target: Int[Array, " C"],
    filled: Bool[Array, " C"],
) -> Float[Array, "W G P D"]:
    """Add to every target the mean of the other tokens nearest to it; returns the video.

    One window of similarities is in memory at a time.

    Args:
        keys: the nearest target is the one with the highest cosine of keys.
        others: tokens that are merged.
        target, filled: slots of targets, from ``sample_anchors``.
    """
    width = video.shape[-1]
    target_keys = keys.reshape(-1, keys.shape[-1])[target]

    def add(total, *window):
        tokens, key, valid = (x.reshape(-1, *x.shape[2:]) for x in window)
        similarity = jnp.where(filled, cosines(key, target_keys), -jnp.inf)
        nearest = jnp.where(valid, jnp.argmax(similarity, -1), target.size)
        ones = jnp.ones((len(tokens), 1), jnp.float32)
        rows = jnp.concatenate([tokens.astype(jnp.float32), ones], -1)
        return total + jax.ops.segment_sum(rows, nearest, target.size + 1)[:-1]

    total = jnp.zeros((target.size, width + 1), jnp.float32)
    total = scan_windows(add, total, video, keys, others)
    mean = total[:, :-1] / jnp.maximum(total[:, -1:], 1)
    flat = video.reshape(-1, width)
    merged = (flat[target].astype(jnp.float32) + mean).astype(video.dtype)
    index = jnp.where(filled, target, len(flat))  # out of range: unchanged
    # Integers are scattered, because XLA on a CPU would convert a bfloat16 clip for it.
    place = jnp.full(len(flat), -1).at[index].set(jnp.arange(target.size), mode="drop")
    return jnp.where(place[:, None] < 0, flat, merged[place]).reshape(video.shape)
