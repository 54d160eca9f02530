"""EVS, efficient video sampling, as in vLLM (``multimodal/evs.py``): tokens that change."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression.baselines import TemporalOnly
from omnizip_jax.compression.counts import floor_share
from omnizip_jax.compression.method import Budget


@dataclasses.dataclass(frozen=True)
class EVS(TemporalOnly):
    """The video tokens least like the same position one grid before: one top K over the clip.

    The score is ``1 - cos(x_t, x_{t-1})``, the first grid ranks before all, and
    ``K = max(HW, floor((1 - rho_video) T HW))`` for T grids of HW tokens. The audio is kept whole
    without ``keep``.
    """

    rho_audio: float = 0.0
    rho_video: float = 0.75

    def plan(self, audio_counts, video_counts):
        """Exact, except for clips so short that the first grid exceeds the share."""
        budget = super().plan(audio_counts, video_counts)
        if self.keep is not None:
            return budget
        video = floor_share(self.shares[1], np.sum(video_counts))
        first = next((n for n in video_counts if n), 0)  # the first grid has at most its window's
        return Budget(budget.audio, video, budget.audio + max(video, first)).as_ints()

    def select(self, windows, budget, key):
        if self.keep is None:
            sizes = jnp.sum(windows.video_mask, -1).reshape(-1)
            first = sizes[jnp.argmax(sizes > 0)]
            budget = budget._replace(video=jnp.maximum(budget.video, first))
        return super().select(windows, budget, key)
