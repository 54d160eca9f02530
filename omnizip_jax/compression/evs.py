"""EVS, efficient video sampling, as in vLLM (``multimodal/evs.py``): what has changed stays."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression.baselines import TemporalOnly
from omnizip_jax.compression.counts import floor_share, lookup


@dataclasses.dataclass(frozen=True)
class EVS(TemporalOnly):
    """The video tokens least like the same place one grid before: one top K over the clip.

    The score is ``1 - cos(x_t, x_{t-1})``, the first grid comes before all, and
    ``K = max(HW, floor((1 - rho_video) T HW))`` for T grids of HW tokens. The sound stays whole;
    with ``keep`` it is thinned by ``SalientSound``.
    """

    rho_audio: float = 0.0
    rho_video: float = 0.75

    def counts(self, windows):
        audio, _ = super().counts(windows)
        sizes = jnp.sum(windows.video_mask, -1).reshape(-1)
        first = sizes[jnp.argmax(sizes > 0)]
        mask = windows.video_mask
        kept = lookup(partial(floor_share, self.shares[1]), jnp.sum(mask), mask.size)
        return audio, jnp.maximum(kept, first)

    def bound(self, audio_counts, video_counts):
        """Exact, but for clips so short that the first grid exceeds the share."""
        if self.keep is not None:
            return super().bound(audio_counts, video_counts)
        first = next((int(n) for n in video_counts if n), 0)  # a grid has no more than its window
        kept = int(floor_share(self.shares[1], np.sum(video_counts)))
        return super().bound(audio_counts, 0 * video_counts) + max(kept, first)
