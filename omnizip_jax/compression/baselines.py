"""Baselines: all tokens, random tokens, and the tokens that change over time (EVS)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression.counts import floor_share, top_mask
from omnizip_jax.compression.method import Budget, Method
from omnizip_jax.compression.omnizip_video import change
from omnizip_jax.compression.per_modality import Rates, select_top
from omnizip_jax.types import Selection


@dataclasses.dataclass(frozen=True)
class AllTokens(Method):
    """All tokens, or all tokens of one modality.

    Args:
        audio, video: whether the modality is kept.
    """

    audio: bool = True
    video: bool = True
    streams: ClassVar[bool] = True

    def plan(self, audio_counts, video_counts):
        kept = self.audio * np.sum(audio_counts), self.video * np.sum(video_counts)
        return Budget.of(*kept).as_ints()

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        return self.audio * audio_slots + self.video * video_slots

    def select(self, windows, budget: Budget | None, key):
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio & self.audio, video & self.video)

    def begin(self, window):
        return ()

    def step(self, state, window, key):
        return state, self.select(window, None, key)


@dataclasses.dataclass(frozen=True)
class RandomTokens(Rates):
    """Tokens sampled uniformly without replacement, from each modality by itself; streams.

    The paper's row "Random, 55 %" (section 4): both rates 0.45.

    Args:
        split: with ``keep``, "joint" samples from all media tokens together.
    """

    splits: ClassVar[tuple[str, ...]] = ("joint", "paper", "uniform")
    streams: ClassVar[bool] = True

    split: str = dataclasses.field(default="joint", kw_only=True)

    def select_audio(self, windows, count, key):
        mask = windows.audio.token_mask
        return select_top(jax.random.uniform(key, mask.shape), mask, count)

    def select_video(self, windows, count, key, audio_keep):
        mask = windows.video_mask
        return select_top(jax.random.uniform(key, mask.shape), mask, count)

    def select(self, windows, budget, key):
        if self.keep is None or self.split != "joint":
            return super().select(windows, budget, key)
        audio, video = windows.audio.token_mask, windows.video_mask
        mask = jnp.concatenate([audio.reshape(-1), video.reshape(-1)])
        keep = top_mask(jax.random.uniform(key, mask.shape), mask, budget.total)
        audio_keep, video_keep = jnp.split(keep, [audio.size])
        kept = audio_keep.reshape(audio.shape), video_keep.reshape(video.shape)
        return Selection.of(audio, video, *kept)


@dataclasses.dataclass(frozen=True)
class TemporalOnly(Rates):
    """The video tokens of the clip least like the token before them in the same position.

    The first grid, and tokens without one before them, rank first.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6

    def select_video(self, windows, count, key, audio_keep):
        return select_top(change(windows.video, windows.video_mask), windows.video_mask, count)


@dataclasses.dataclass(frozen=True)
class EVS(TemporalOnly):
    """EVS, efficient video sampling, as in vLLM (``multimodal/evs.py``): one top K over the clip.

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

    def select_video(self, windows, count, key, audio_keep):
        if self.keep is None:
            sizes = jnp.sum(windows.video_mask, -1).reshape(-1)
            count = jnp.maximum(count, sizes[jnp.argmax(sizes > 0)])
        return super().select_video(windows, count, key, audio_keep)
