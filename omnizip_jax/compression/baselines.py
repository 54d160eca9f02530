"""Baselines: all tokens, random tokens, and the tokens that change over time."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from omnizip_jax.compression.counts import top_mask
from omnizip_jax.compression.method import Budget, Method
from omnizip_jax.compression.omnizip_video import change
from omnizip_jax.compression.per_modality import ModalitySelection, Rates, join, select_top
from omnizip_jax.types import EncodedWindow, Selection


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

    def select(self, windows, budget, key):
        return self._all(windows)

    def begin(self, window: EncodedWindow) -> tuple[()]:
        return ()

    def step(
        self, state: tuple[()], window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[tuple[()], Selection]:
        return state, self._all(window)

    def _all(self, windows: EncodedWindow) -> Selection:
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio & self.audio, video & self.video)


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
        scores = jax.random.uniform(key, mask.shape)
        keep = top_mask(scores, mask, budget.total)

        def part(slots: slice, like: Array) -> ModalitySelection:
            return ModalitySelection(
                keep[slots].reshape(like.shape), scores[slots].reshape(like.shape)
            )

        return join(windows, part(slice(audio.size), audio), part(slice(audio.size, None), video))


@dataclasses.dataclass(frozen=True)
class TemporalOnly(Rates):
    """The video tokens of the clip least like the token before them in the same position.

    The first grid, and tokens without one before them, rank first.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6

    def select_video(self, windows, count, key, audio_keep):
        return select_top(change(windows.video, windows.video_mask), windows.video_mask, count)
