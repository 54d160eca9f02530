"""The paper's rule as a method: look ahead over a clip, or window by window in a stream."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from omnizip_jax.compression.audio import consolidate_window
from omnizip_jax.compression.budget import allocate_discards
from omnizip_jax.compression.causal import CausalPlan, compress_causal, init_plan
from omnizip_jax.compression.counts import exact, lookup, round_share
from omnizip_jax.compression.method import Counts
from omnizip_jax.compression.published import PublishedOmniZip
from omnizip_jax.compression.rule import Rule, over_windows
from omnizip_jax.compression.settings import PaperSettings
from omnizip_jax.compression.video import dpc_knn, split_over_grids
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class OmniZipConfig(PaperSettings, Rule):
    """OmniZip, section 3 of the paper, with its budget met to the token; keeps 45 % by default.

    The spatial step measures distances relative to the largest in the grid, for without that it
    drops small things (docs/accuracy.md); ``OmniZipConfig.paper()`` is the paper to the letter,
    ``OmniZipConfig.published()`` the authors' code.

    Args:
        causal: plan a clip window by window without looking ahead, as in a stream.

    Raises:
        ValueError: a setting of the wrong type or outside its range, or a video budget that no
            rates inside the bounds can meet.
    """

    causal: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.rho_video > self.rho_max:
            raise ValueError(
                f"no rates inside the bounds can discard {self.rho_video:.0%} of the video: "
                f"raise rho_max (now {self.rho_max}) to at least {self.rho_video}"
            )
        if self.rho_video < self.rho_min:
            raise ValueError(
                f"no rates inside the bounds can discard only {self.rho_video:.0%} of the video: "
                f"lower rho_min (now {self.rho_min}) to at most {self.rho_video}"
            )

    @classmethod
    def paper(cls, **settings: Any) -> OmniZipConfig:
        """The paper to the letter, with the same settings."""
        return cls(relative_distance=False, **settings)

    @classmethod
    def published(cls, **settings: Any) -> PublishedOmniZip:
        """The rule of the authors' newest code, quirks included, with the same settings."""
        return PublishedOmniZip(**settings)

    def bound(self, audio_counts: Counts, video_counts: Counts) -> int:
        """Exact, but that windows with hardly any non-salient tokens may have fewer anchors."""
        audio_counts, video_counts = np.asarray(audio_counts), np.asarray(video_counts)
        audio, video = audio_counts.sum(), video_counts.sum()
        salient = round_share(1 - exact(self.rho_audio), audio)
        anchors = round_share(exact(self.anchor_ratio), audio_counts).sum()
        if self.merge_size == 0:
            anchors = 0
        kept_video = video - round_share(exact(self.rho_video), video)
        if self.causal:
            # The balance may stray, and bounds round against it: a window's worth, a token each.
            slack = audio_counts.max(initial=0) + video_counts.max(initial=0) + len(video_counts)
            return int(min(salient + anchors + kept_video + slack, audio + video))
        return int(min(salient + anchors, audio) + kept_video)

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        if not self.causal:
            return super().select(windows, key)
        plan = self.begin(jax.tree.map(lambda x: x[0], windows))
        return jax.lax.scan(lambda plan, window: self.step(plan, window, key), plan, windows)[1]

    def salient_count(self, audio_counts, video_counts, slots):
        rule = partial(round_share, 1 - exact(self.rho_audio))
        return lookup(rule, jnp.sum(audio_counts), slots[0])

    def consolidate(self, tokens, salient):
        return over_windows(
            partial(consolidate_window, config=self),
            tokens.audio,
            tokens.audio_mask,
            salient,
            tokens.video,
            tokens.video_mask,
        )

    def grid_keeps(self, audio_keep, audio_counts, grid_counts, slots):
        retention = jnp.sum(audio_keep, -1) / jnp.maximum(audio_counts, 1)
        video_counts = jnp.sum(grid_counts, -1)
        window = slots * grid_counts.shape[-1]
        discards = allocate_discards(retention, audio_counts, video_counts, self, window)
        return jax.vmap(split_over_grids)(video_counts - discards, grid_counts)

    def spatial(self, grid, mask):
        return dpc_knn(grid, mask, self.knn, self.relative_distance)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """No window keeps more than ``1 - rho_min`` of its video; its audio it may keep whole."""
        return audio_slots + video_slots - int(self.rho_min * video_slots)

    def begin(self, window: EncodedWindow) -> CausalPlan:
        frames, heads, size = window.audio.keys.shape
        return init_plan(self, frames, heads, size, window.audio.keys.dtype)

    def step(
        self, state: CausalPlan, window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[CausalPlan, Selection]:
        audio = window.audio
        return compress_causal(
            state,
            audio.queries,
            audio.keys,
            audio.frame_mask,
            audio.tokens,
            audio.token_mask,
            window.video,
            window.video_mask,
            self,
        )
