"""The paper's rule as a method: over a clip with look-ahead, or window by window in a stream."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from omnizip_jax.compression.counts import as_fraction, round_share, salience_order, top_mask
from omnizip_jax.compression.method import Budget, Count, Counts
from omnizip_jax.compression.omnizip_budget import allocate_discards
from omnizip_jax.compression.omnizip_official import PublishedOmniZip
from omnizip_jax.compression.omnizip_steps import with_scores
from omnizip_jax.compression.omnizip_streaming import StreamedOmniZip, anchor_count
from omnizip_jax.compression.omnizip_video import istc, over_windows, split_over_grids
from omnizip_jax.compression.per_modality import ModalitySelection
from omnizip_jax.types import WindowTokens


@dataclasses.dataclass(frozen=True)
class OmniZipConfig(StreamedOmniZip):
    """OmniZip, section 3 of the paper, with its budget met to the token; keeps 45 % by default.

    The spatial step measures distances relative to the largest in the grid, because without that it
    drops small objects (docs/accuracy.md). ``OmniZipConfig.paper()`` is paper-exact,
    ``OmniZipConfig.published()`` reproduces the authors' code.

    With ``keep``, ``split`` replaces ``rho_audio`` and ``rho_video``. By default that is the line
    through the paper's two settings, (0.3, 0.6) and (0.4, 0.7): ``rho_video = rho_audio + 0.3``,
    anchors in addition. The audio count is rounded, and the video takes exactly the rest of the
    share. Bounds of the rates that cannot meet it widen (``discard_bounds``).

    Args:
        causal: compress a clip window by window without look-ahead, as a stream; ``keep`` is then a
            running balance like the two budgets, held to half a window after every window.

    Raises:
        ValueError: a setting of the wrong type or outside its range, or a video budget that no
            rates inside the bounds can meet.
    """

    causal: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.keep is not None:
            return
        if not self.rho_min <= self.rho_video <= self.rho_max:
            change = "raise rho_max" if self.rho_video > self.rho_max else "lower rho_min"
            raise ValueError(
                f"no rates from rho_min {self.rho_min} to rho_max {self.rho_max} can discard "
                f"{self.rho_video:.0%} of the video: {change} to {self.rho_video}"
            )

    @classmethod
    def paper(cls, **settings: Any) -> OmniZipConfig:
        """The paper-exact rule, with the same settings."""
        return cls(relative_distance=False, **settings)

    @classmethod
    def published(cls, **settings: Any) -> PublishedOmniZip:
        """The rule of the authors' newest code, quirks included, with the same settings."""
        return PublishedOmniZip(**settings)

    def own_budget(self, audio_counts: Counts, video_counts: Counts) -> Budget:
        audio, video = np.sum(audio_counts), np.sum(video_counts)
        salient = round_share(1 - as_fraction(self.rho_audio), audio)
        kept = min(salient + self.anchor_total(audio_counts), audio)
        budget = Budget.of(kept, video - round_share(as_fraction(self.rho_video), video))
        return budget._replace(anchors=kept - salient)

    def anchor_total(self, audio_counts: Counts) -> int:
        return np.sum(anchor_count(self, np.asarray(audio_counts)))

    def plan(self, audio_counts, video_counts):
        """Exact, except that windows with few non-salient tokens may have fewer anchors."""
        budget = super().plan(audio_counts, video_counts)
        if not self.causal:
            return budget
        audio, video = np.asarray(audio_counts), np.asarray(video_counts)
        # The balance may deviate, and bounds round against it: a window, and a token each.
        slack = audio.max(initial=0) + video.max(initial=0) + len(video)
        return budget._replace(total=int(min(budget.total + slack, audio.sum() + video.sum())))

    def select(self, windows, budget, key):
        if self.causal:
            return self.follow(windows, key)
        return super().select(windows, budget, key)

    def compress_audio(self, tokens, budget):
        scores, mask = tokens.audio_scores, tokens.audio_mask
        if self.keep is None:
            salient = top_mask(scores, mask, budget.audio - budget.anchors)
        else:
            salient = self.salient_beside_anchors(scores, mask, budget.audio)
        audio, anchors = self._consolidate(tokens, salient)
        return audio, salient, anchors

    def salient_beside_anchors(
        self, scores: Float[Array, "W A"], mask: Bool[Array, "W A"], count: Count
    ) -> Bool[Array, "W A"]:
        """Salient tokens that are ``count`` together with the anchors.

        A window with n anchors has n tokens that are not salient: those with the lowest scores.
        """
        anchors = anchor_count(self, jnp.sum(mask, -1))
        last = jnp.sum(mask, -1) - anchors
        rank = jax.vmap(salience_order)(scores, mask)
        return top_mask(scores, mask & (rank < last[:, None]), count - jnp.sum(anchors))

    def _consolidate(
        self, tokens: WindowTokens, salient: Bool[Array, "W A"]
    ) -> tuple[Float[Array, "W A D"], Bool[Array, "W A"]]:
        audio = tokens.audio, tokens.audio_mask, salient
        return over_windows(self.consolidate, *audio, tokens.video, tokens.video_mask)

    def compress_video(self, tokens, budget, audio_keep):
        rate = self.rho_video if self.keep is None else None
        return self._guided_istc(
            tokens.video, tokens.video_mask, audio_keep, tokens.audio_mask, budget.video, rate
        )

    def _guided_istc(
        self,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        audio_keep: Bool[Array, "W A"],
        audio_mask: Bool[Array, "W A"],
        count: Count,
        rate: float | None = None,
    ) -> Bool[Array, "W G P"]:
        """ISTC of every window, with the numbers of tokens that its audio gives it."""
        audio_counts, grid_counts = jnp.sum(audio_mask, -1), jnp.sum(mask, -1)
        video_counts = jnp.sum(grid_counts, -1)
        retention = jnp.sum(audio_keep, -1) / jnp.maximum(audio_counts, 1)
        total = jnp.sum(video_counts) - count
        discards = allocate_discards(retention, audio_counts, video_counts, total, self, rate)
        kept = jax.vmap(split_over_grids)(video_counts - discards, grid_counts)
        return over_windows(partial(istc, spatial=self.spatial), video, mask, kept)

    def select_audio(self, windows, count, key):
        tokens = with_scores(windows)
        salient = self.salient_beside_anchors(tokens.audio_scores, tokens.audio_mask, count)
        audio, anchors = self._consolidate(tokens, salient)
        return ModalitySelection(salient | anchors, audio, salient)

    def select_video(self, windows, count, key, audio_keep):
        audio_mask = windows.audio.token_mask
        return ModalitySelection(
            self._guided_istc(windows.video, windows.video_mask, audio_keep, audio_mask, count)
        )
