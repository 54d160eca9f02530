"""The sizes of a decoder, whatever the family."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder (``thinker_config.text_config``)."""

    vocabulary: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies that turn with time, height, width
    rms_eps: float
    max_positions: int
    tied: bool  # lm_head shares the embedding table

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads
