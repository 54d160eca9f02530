"""FastV (arXiv 2403.06764, repository pkunlp-icler/FastV): one stage inside the decoder.

At the entry of a layer the media tokens stay that the last token of the prompt attended to most in
the layer before: mean over heads, one row of the attention, so that no matrix exists.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from omnizip_jax.compression.counts import as_fraction, lookup, round_share, top_mask
from omnizip_jax.compression.method import check_share
from omnizip_jax.compression.share import Share
from omnizip_jax.compression.stages import Stage, Tokens
from omnizip_jax.types import EncodedWindow, Selection, TokenKind

LAYERS = 28  # of the decoders that the settings were published for


def finished(after: int, layers: int) -> int:
    """``after`` of 28 finished layers, in a decoder of another depth; at least one."""
    return max(1, round(after * layers / LAYERS))


@dataclasses.dataclass(frozen=True)
class FastV(Share):
    """The media tokens that the question attends to most go on after a few of the layers.

    Args:
        after: finished layers of 28; other depths in proportion. The paper's 5.
        rho_audio, rho_video: share of the tokens to discard there.
        keep: kept share of all media tokens, averaged over the layers; the rates give way.

    Raises:
        ValueError: not a share; from ``stages``, a share that the first layers alone exceed.
    """

    after: int = 5
    rho_audio: float = 0.5
    rho_video: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        for name in ("rho_audio", "rho_video"):
            check_share(f"FastV.{name}", getattr(self, name))
        if not 1 <= self.after < LAYERS:
            raise ValueError(f"FastV.after must be from 1 to {LAYERS - 1}, got {self.after}")

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio, video)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        after = finished(self.after, layers)
        if self.keep is None:
            return (AttentionStage(after, audio=1 - self.rho_audio, video=1 - self.rho_video),)
        if self.keep * layers < after:
            raise ValueError(
                f"FastV reads all tokens in {after} of {layers} layers: keep at least "
                f"{after / layers:.3f}, got {self.keep}"
            )
        return (AttentionStage(after, media=(self.keep * layers - after) / (layers - after)),)


@dataclasses.dataclass(frozen=True)
class AttentionStage(Stage):
    """The media tokens that the last token attends to most; counts are rounded half to even.

    Attributes:
        media: share of all media tokens that stays; None: of each modality as follows.
        audio, video: shares that stay.
    """

    media: float | None = None
    audio: float = 0.5
    video: float = 0.5

    def bound(self, text: int, media: int) -> int:
        if self.media is not None:
            return text + int(round_share(as_fraction(self.media), np.asarray(media)))
        # How many of them are sound is not known; two counts were rounded.
        most = round_share(as_fraction(max(self.audio, self.video)), np.asarray(media))
        return text + min(int(most) + 2, media)

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        scores = jnp.mean(attention, axis=0)

        def best(share: float, these: Bool[Array, " T"]) -> Bool[Array, " T"]:
            def rule(count: np.ndarray) -> np.ndarray:
                return round_share(as_fraction(share), count)

            return top_mask(scores, these, lookup(rule, jnp.sum(these), these.size))

        media = tokens.media
        if self.media is not None:
            return ~media | best(self.media, media)
        sound, picture = (
            media & (tokens.kind == TokenKind.AUDIO),
            media & (tokens.kind == TokenKind.VIDEO),
        )
        return ~media | best(self.audio, sound) | best(self.video, picture)
