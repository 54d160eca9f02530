"""The paper's rule as a method: look ahead over a clip, or window by window in a stream."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.audio import consolidate_window, select_salient
from omnizip_jax.compression.budget import allocate_discards
from omnizip_jax.compression.causal import (
    CausalPlan,
    anchor_count,
    compress_causal,
    init_plan,
    most_of_window,
)
from omnizip_jax.compression.counts import as_fraction, lookup, round_share, salience_order
from omnizip_jax.compression.method import Counts
from omnizip_jax.compression.per_modality import ModalitySelection, PerModality
from omnizip_jax.compression.published import PublishedOmniZip
from omnizip_jax.compression.rule import Rule, over_windows, scored
from omnizip_jax.compression.settings import PaperSettings
from omnizip_jax.compression.share import split
from omnizip_jax.compression.video import dpc_knn, istc, split_over_grids
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class OmniZipConfig(PaperSettings, Rule, PerModality):
    """OmniZip, section 3 of the paper, with its budget met to the token; keeps 45 % by default.

    The spatial step measures distances relative to the largest in the grid, for without that it
    drops small things (docs/accuracy.md); ``OmniZipConfig.paper()`` is the paper to the letter,
    ``OmniZipConfig.published()`` the authors' code.

    With ``keep``, ``rho_audio`` and ``rho_video`` give way to the line through the paper's two
    settings, (0.3, 0.6) and (0.4, 0.7): ``rho_video = rho_audio + 0.3``, anchors in addition. The
    audio count is what that gives for the tokens of the clip, and the video takes exactly the rest
    of the share. Bounds of the rates that cannot meet it widen (``discard_bounds``).

    Args:
        causal: plan a clip window by window without looking ahead, as in a stream; ``keep`` is then
            a running balance like the two budgets, held to half a window at every moment.

    Raises:
        ValueError: a setting of the wrong type or outside its range, or a video budget that no
            rates inside the bounds can meet.
    """

    causal: bool = False
    streams: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.keep is not None:
            return
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
        anchors = anchor_count(self, audio_counts).sum()
        if self.keep is None:
            salient = round_share(1 - as_fraction(self.rho_audio), audio)
            kept = (
                min(salient + anchors, audio)
                + video
                - round_share(as_fraction(self.rho_video), video)
            )
        else:
            kept = self.kept_on_host(audio_counts, video_counts)
            if kept < anchors:
                raise ValueError(
                    f"keep {self.keep} of {audio + video} tokens is less than the {anchors} audio "
                    f"anchors: keep at least {anchors / (audio + video):.3f}, or no anchors "
                    "(merge_size=0)"
                )
        if self.causal:
            # The balance may stray, and bounds round against it: a window's worth, a token each.
            slack = audio_counts.max(initial=0) + video_counts.max(initial=0) + len(video_counts)
            return int(min(kept + slack, audio + video))
        return int(kept)

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        if not self.causal:
            return super().select(windows, key)
        return self.follow(windows, key)

    def salient(self, tokens):
        mask, scores = tokens.audio_mask, tokens.audio_scores
        if self.keep is None:
            rule = partial(round_share, 1 - as_fraction(self.rho_audio))
            return select_salient(scores, mask, lookup(rule, jnp.sum(mask), mask.size))
        audio, video = jnp.sum(mask), jnp.sum(tokens.video_mask)
        total = self.kept(audio + video, mask.size + tokens.video_mask.size)
        return self.salient_of(scores, mask, split(total, audio, video, self.anchors(mask)))

    def salient_of(
        self, scores: Float[Array, "W A"], mask: Bool[Array, "W A"], count: Int[Array, ""]
    ) -> Bool[Array, "W A"]:
        """Salient tokens that make ``count`` together with their anchors.

        The last ones of a window are never among them: as many as it has anchors, they are those.
        """
        anchors = self.anchors_of_windows(mask)
        last = jnp.sum(mask, -1) - anchors
        place = jax.vmap(salience_order)(scores, mask)
        return select_salient(scores, mask & (place < last[:, None]), count - jnp.sum(anchors))

    def anchors_of_windows(self, mask: Bool[Array, "W A"]) -> Int[Array, " W"]:
        return lookup(partial(anchor_count, self), jnp.sum(mask, -1), mask.shape[-1])

    def anchors(self, audio_mask):
        return jnp.sum(self.anchors_of_windows(audio_mask))

    def counts(self, windows):
        audio, video = windows.audio.token_mask, windows.video_mask
        salient = lookup(
            partial(round_share, 1 - as_fraction(self.rho_audio)), jnp.sum(audio), audio.size
        )
        dropped = lookup(
            partial(round_share, as_fraction(self.rho_video)), jnp.sum(video), video.size
        )
        kept = jnp.minimum(salient + self.anchors(audio), jnp.sum(audio))
        return kept, jnp.sum(video) - dropped

    def sound(self, windows, count, key):
        tokens = scored(windows)
        salient = self.salient_of(tokens.audio_scores, tokens.audio_mask, count)
        audio, anchors = self.consolidate(tokens, salient)
        return ModalitySelection(salient | anchors, tokens.audio_scores, audio, salient)

    def picture(self, windows, count, key, audio_keep):
        mask = windows.video_mask
        counts = jnp.sum(windows.audio.token_mask, -1), jnp.sum(mask, -1)
        kept = self.keeps(audio_keep, *counts, mask.shape[-1], jnp.sum(mask) - count)
        keep, order = self.choose_video(windows.video, mask, kept, counts[0])
        return ModalitySelection(keep, -order.astype(jnp.float32))

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
        discards = None
        if self.keep is not None:  # exactly the rest of the share
            audio, video = jnp.sum(audio_counts), jnp.sum(grid_counts)
            total = self.kept(audio + video, audio_keep.size + slots * grid_counts.size)
            discards = video - jnp.clip(total - jnp.sum(audio_keep), 0, video)
        return self.keeps(audio_keep, audio_counts, grid_counts, slots, discards)

    def keeps(
        self,
        audio_keep: Bool[Array, "W A"],
        audio_counts: Int[Array, " W"],
        grid_counts: Int[Array, "W G"],
        slots: int,
        total: Int[Array, ""] | None,
    ) -> Int[Array, "W G"]:
        """Video tokens to keep in every grid, where ``total`` of the clip are discarded."""
        retention = jnp.sum(audio_keep, -1) / jnp.maximum(audio_counts, 1)
        video_counts = jnp.sum(grid_counts, -1)
        window = slots * grid_counts.shape[-1]
        discards = allocate_discards(retention, audio_counts, video_counts, self, window, total)
        return jax.vmap(split_over_grids)(video_counts - discards, grid_counts)

    def choose_video(self, video, mask, kept, audio_counts):
        spatial = partial(dpc_knn, knn=self.knn, relative=self.relative_distance)
        return over_windows(partial(istc, spatial=spatial), video, mask, kept)

    def step_bound(self, audio_slots: int, video_slots: int) -> int:
        """No window keeps more than ``1 - rho_min`` of its video; its audio it may keep whole."""
        if self.keep is not None:
            return most_of_window(self.keep, audio_slots, video_slots)
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
