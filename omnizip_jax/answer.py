"""What comes out: an answer, and how many tokens it took."""

from __future__ import annotations

import dataclasses

from omnizip_jax.media import Clip
from omnizip_jax.types import Selection


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """How many tokens the media had, how many the decoder read, how many it wrote."""

    audio: int
    audio_kept: int
    video: int
    video_kept: int
    text: int
    generated: int

    @property
    def media(self) -> int:
        return self.audio + self.video

    @property
    def kept(self) -> int:
        return self.audio_kept + self.video_kept

    @property
    def retained(self) -> float:
        """Share of the media tokens that the decoder read."""
        return self.kept / self.media if self.media else 1.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: prints as its text, and carries what led to it.

    Attributes:
        text: the answer.
        token_ids: its tokens, the end token included if it was made.
        counts: tokens by modality, before and after compression.
        compression: the trace, leading axis = windows: kept masks, retention, rates. None for a
            stream, and for a question without media.
        clip: the clip as it was read, with the pictures of a few windows to look at.
        seconds: wall time of "media", "encoders", "prefill" (compression included), "generation".
    """

    text: str
    token_ids: tuple[int, ...]
    counts: TokenCounts
    compression: Selection | None
    clip: Clip | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        return self.text
