"""What the paper's rule and the authors' code share: the steps of a clip, in their order.

Only two steps see the whole clip, the ranking of the audio tokens and the video budget; under the
paper's rule everything else happens inside a window.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from omnizip_jax.compression.audio import attention_scores
from omnizip_jax.compression.counts import salience_order
from omnizip_jax.compression.settings import Settings
from omnizip_jax.types import EncodedWindow, Selection, WindowTokens


@dataclasses.dataclass(frozen=True)
class Rule(Settings):
    """A rule of the OmniZip kind: ``compress_clip`` with the steps in which rules differ."""

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        return compress_clip(scored(windows), self)

    def salient(self, tokens: WindowTokens) -> Bool[Array, "W A"]:
        """Audio tokens that stay for their own sake."""
        raise NotImplementedError

    def consolidate(
        self, tokens: WindowTokens, salient: Bool[Array, "W A"]
    ) -> tuple[Float[Array, "W A D"], Bool[Array, "W A"]]:
        """The audio with merged anchors, and the mask of the anchors."""
        raise NotImplementedError

    def grid_keeps(
        self,
        audio_keep: Bool[Array, "W A"],
        audio_counts: Int[Array, " W"],
        grid_counts: Int[Array, "W G"],
        slots: int,
    ) -> Int[Array, "W G"]:
        """Video tokens to keep in every grid.

        Args:
            slots: static bound on the tokens of a grid.
        """
        raise NotImplementedError

    def choose_video(
        self,
        video: Float[Array, "W G P D"],
        mask: Bool[Array, "W G P"],
        kept: Int[Array, "W G"],
        audio_counts: Int[Array, " W"],
    ) -> tuple[Bool[Array, "W G P"], Int[Array, "W G P"]]:
        """ISTC: the tokens of every grid that stay, and each one's place in its grid's order."""
        raise NotImplementedError


def scored(windows: EncodedWindow) -> WindowTokens:
    """The tokens of a clip with the audio scores of eq. 2."""
    audio = windows.audio
    scores = attention_scores(audio.queries, audio.keys, audio.frame_mask)
    return WindowTokens(audio.tokens, scores, audio.token_mask, windows.video, windows.video_mask)


def compress_clip(tokens: WindowTokens, config: Rule) -> Selection:
    """Compress a clip of W windows; pure, of static shape, jittable with ``config`` static.

    1. Audio token selection over the clip: those with the highest scores are salient.
    2. Audio anchor consolidation (eq. 3-4).
    3. Retention S_a of each window, anchors included.
    4. Video budget over the clip (eq. 5 and Algorithm 1).
    5. ISTC inside each window (``istc``): eq. 6-8.

    Raises:
        ValueError: the arrays of ``tokens`` do not belong together.
    """
    check_tokens(tokens)
    audio_mask, video_mask = tokens.audio_mask, tokens.video_mask
    audio_counts, grid_counts = audio_mask.sum(-1), video_mask.sum(-1)
    salient = config.salient(tokens)
    audio, anchors = config.consolidate(tokens, salient)
    audio_keep = salient | anchors
    grid_keep = config.grid_keeps(audio_keep, audio_counts, grid_counts, video_mask.shape[-1])
    video_keep, video_order = config.choose_video(tokens.video, video_mask, grid_keep, audio_counts)
    return Selection.of(
        audio_mask,
        video_mask,
        audio_keep,
        video_keep,
        audio=audio,
        audio_salient=salient,
        audio_order=jax.vmap(salience_order)(tokens.audio_scores, audio_mask),
        video_order=video_order,
    )


def over_windows(function, *arrays):
    """``lax.map`` that reads each window where it lies: no copy of the clip."""

    def take(batch: int | None, *arrays: Array):
        windows = jnp.arange(arrays[0].shape[0])
        return jax.lax.map(lambda i: function(*(x[i] for x in arrays)), windows, batch_size=batch)

    # One window is enough work for a CPU; on an accelerator its kernels would be too small.
    return jax.lax.platform_dependent(*arrays, cpu=partial(take, None), default=partial(take, 16))


def check_tokens(tokens: WindowTokens) -> None:
    """Raise ``ValueError`` unless the shapes are those of one clip."""
    expected = {
        "audio_scores": tokens.audio.shape[:-1],
        "audio_mask": tokens.audio.shape[:-1],
        "video": (*tokens.audio.shape[:1], *tokens.video.shape[1:3], tokens.audio.shape[-1]),
        "video_mask": (*tokens.audio.shape[:1], *tokens.video.shape[1:3]),
    }
    for name, shape in expected.items():
        found = getattr(tokens, name).shape
        if found != shape:
            raise ValueError(
                f"tokens.{name} should have the shape {shape} to go with audio [W, A, D] "
                f"{tokens.audio.shape}, got {found}; every leaf of WindowTokens needs the leading "
                "axis of windows (add one for a single window)"
            )
    if tokens.audio.ndim != 3 or tokens.video.ndim != 4:
        raise ValueError(
            "compress_clip takes audio [W, A, D] and video [W, G, P, D], got "
            f"{tokens.audio.shape} and {tokens.video.shape}"
        )
