"""A clip as a stream chooses it: window by window, by what is known so far."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import PRNGKeyArray

from omnizip_jax.compression import Method
from omnizip_jax.compression.method import Budget, Counts
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class Streamed(Method):
    """What a method that can follow a stream keeps of a clip without looking ahead."""

    method: Method

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.wants

    def plan(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        """An upper limit: each window may keep the most that one can."""
        windows = zip(audio_counts.tolist(), video_counts.tolist(), strict=True)
        total = sum(min(self.method.step_bound(a, v), a + v) for a, v in windows)
        return Budget(np.sum(audio_counts), np.sum(video_counts), total).as_ints()

    def select(self, windows: EncodedWindow, budget: Budget, key: PRNGKeyArray) -> Selection:
        return self.method.follow(windows, key)
