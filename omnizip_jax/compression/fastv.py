"""FastV (arXiv 2403.06764, repository pkunlp-icler/FastV): one stage inside the decoder.

Before a layer the media tokens are kept that the last token of the prompt attended to most in the
layer before: mean over heads, one row of the attention, so that no attention matrix is computed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from omnizip_jax.compression.counts import as_fraction, round_share, top_mask
from omnizip_jax.compression.decoder_stages import Stage, Tokens, check_after, stage_layer
from omnizip_jax.compression.method import Method, check_shares
from omnizip_jax.types import Selection, TokenKind


@dataclasses.dataclass(frozen=True)
class FastV(Method):
    """Keep the media tokens that the question attends to most, after a few of the layers.

    Args:
        after: layers before the selection in a decoder of 28; other depths in proportion. The
            paper's 5.
        rho_audio, rho_video: share of the tokens to discard there.
        keep: kept share of all media tokens, averaged over the layers; it replaces the rates.

    Raises:
        ValueError: not a share; from ``stages``, a share that the first layers alone exceed, or a
            decoder too shallow for ``after``.
    """

    after: int = 5
    rho_audio: float = 0.5
    rho_video: float = 0.5
    keep: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "keep", "rho_audio", "rho_video")
        check_after("FastV.after", self.after)

    def select(self, windows, budget, key):
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio, video)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        after = stage_layer("FastV.after", self.after, layers)
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
    """Keep the media tokens that the last token attends to most; counts are rounded half to even.

    Attributes:
        media: kept share of all media tokens; None: ``audio`` and ``video`` apply.
        audio, video: kept share of each modality.
    """

    media: float | None = None
    audio: float = 0.5
    video: float = 0.5

    def bound(self, text: int, media: int) -> int:
        if self.media is not None:
            return text + round_share(as_fraction(self.media), media)
        # The number of audio tokens among them is not known; two counts were rounded.
        most = round_share(as_fraction(max(self.audio, self.video)), media)
        return text + min(most + 2, media)

    def keep(self, attention: Float[Array, "N T"], tokens: Tokens) -> Bool[Array, " T"]:
        scores, media = jnp.mean(attention, axis=0), tokens.media

        def top(share: float, members: Bool[Array, " T"]) -> Bool[Array, " T"]:
            return top_mask(scores, members, round_share(as_fraction(share), jnp.sum(members)))

        if self.media is not None:
            return ~media | top(self.media, media)
        audio = media & (tokens.kind == TokenKind.AUDIO)
        video = media & (tokens.kind == TokenKind.VIDEO)
        return ~media | top(self.audio, audio) | top(self.video, video)
