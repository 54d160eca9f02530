"""VisionZip (arXiv 2412.04467, repository dvlab-research/VisionZip), on Qwen's vision encoder.

Tokens that receive much attention in the last block of full attention stay as they are; the others
are merged into a few, by their keys.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from omnizip_jax.compression.audio import sample_anchors
from omnizip_jax.compression.counts import apportion, as_fraction, lookup, round_share, top_mask
from omnizip_jax.compression.method import check_share
from omnizip_jax.compression.per_modality import ModalitySelection, SalientSound, vision_of
from omnizip_jax.compression.rule import over_windows
from omnizip_jax.compression.similarity import cosines
from omnizip_jax.types import VisionFeatures


@dataclasses.dataclass(frozen=True)
class VisionZip(SalientSound):
    """Dominant video tokens by attention received, and contextual ones that took in the rest.

    Of n tokens ``contextual`` n are contextual: every m-th of those that are not dominant. Each of
    the others goes to the one with the most similar key; a contextual token becomes itself plus the
    mean of its own. The sound stays whole; with ``keep`` it is thinned by ``SalientSound``.

    Args:
        contextual: share of the video tokens, within the share that is kept.
        per_window: choose in every window by itself, in proportion to its tokens, and not over the
            whole clip; the method can then follow a stream, if the sound stays whole.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"vision"})

    rho_audio: float = 0.0
    rho_video: float = 0.6
    contextual: float = 0.05
    per_window: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_share("VisionZip.contextual", self.contextual)

    @property
    def streams(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.per_window and self.rho_audio == 0 and self.keep is None

    def picture(self, windows, count, key, audio_keep):
        vision = vision_of(windows)
        if not self.per_window:
            return self.of_clip(windows.video, windows.video_mask, vision, count)
        counts = apportion(count, jnp.sum(windows.video_mask, (1, 2)))

        def one(i):
            arrays = jax.tree.map(lambda x: x[i][None], (windows.video, windows.video_mask, vision))
            video, mask, of_window = arrays
            part = self.of_clip(video, mask, of_window, counts[i])
            return jax.tree.map(lambda x: x[0], part)

        return over_windows(one, jnp.arange(len(counts)))

    def of_clip(
        self,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        vision: VisionFeatures,
        count: Int[Array, ""],
    ) -> ModalitySelection:
        """``count`` of the video tokens of some windows, taken together."""
        valid, scores = mask.reshape(-1), vision.received.reshape(-1)
        rule = partial(round_share, as_fraction(self.contextual))
        slots = int(rule(np.array(valid.size)))
        merged = jnp.minimum(lookup(rule, jnp.sum(valid), valid.size), count)
        dominant = top_mask(scores, valid, count - merged)
        others = valid & ~dominant
        if slots == 0:
            return ModalitySelection(dominant.reshape(mask.shape), vision.received)
        target, filled, targets = sample_anchors(others, merged, slots)
        features = add_means(
            video, vision.keys, (others & ~targets).reshape(mask.shape), target, filled
        )
        keep = (dominant | targets).reshape(mask.shape)
        return ModalitySelection(keep, vision.received, features, dominant.reshape(mask.shape))


def add_means(
    video: Float[Array, "W G P D"],
    keys: Float[Array, "W G P H"],
    others: Bool[Array, "W G P"],
    target: Int[Array, " C"],
    filled: Bool[Array, " C"],
) -> Float[Array, "W G P D"]:
    """The video, where every target has become itself plus the mean of the others nearest to it.

    One window of similarities lives at a time.

    Args:
        keys: by whose cosine the nearest target is found.
        others: tokens that are merged.
        target, filled: slots of targets, from ``sample_anchors``.
    """
    width = video.shape[-1]
    of_target = keys.reshape(-1, keys.shape[-1])[target]

    def add(total, window):
        tokens, key, here = (x.reshape(-1, *x.shape[2:]) for x in window)
        near = jnp.where(filled, cosines(key, of_target), -jnp.inf)
        belongs = jnp.where(here, jnp.argmax(near, -1), target.size)
        rows = jnp.concatenate([tokens.astype(jnp.float32), jnp.ones((len(tokens), 1))], -1)
        return total + jax.ops.segment_sum(rows, belongs, target.size + 1)[:-1], None

    total = jnp.zeros((target.size, width + 1), jnp.float32)
    total, _ = jax.lax.scan(add, total, (video, keys, others))
    mean = total[:, :-1] / jnp.maximum(total[:, -1:], 1)
    flat = video.reshape(-1, width)
    grown = (flat[target].astype(jnp.float32) + mean).astype(video.dtype)
    place = jnp.where(filled, target, len(flat))  # out of range: left as it is
    return flat.at[place].set(grown, mode="drop").reshape(video.shape)
