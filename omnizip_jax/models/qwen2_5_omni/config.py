"""Sizes of Qwen2.5-Omni's thinker, read from the released ``config.json``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Self

from omnizip_jax.models.config import (
    MAX_LAYERS,
    BaseAudioConfig,
    BaseModelConfig,
    BaseVisionConfig,
    ConfigSection,
    check_audio,
    check_vision,
    integer,
    integers,
    read_prompt,
    read_text,
    thinker_section,
)

AUDIO_TOKENS_PER_SECOND = 25  # 100 mel frames, halved by a convolution and by pooling
TOKENS = {  # ids of placeholders and markers, and their entries
    "audio_token": "audio_token_index",
    "video_token": "video_token_index",
    "audio_start_token": "audio_start_token_id",
    "audio_end_token": "audio_end_token_id",
    "vision_start_token": "vision_start_token_id",
    "vision_end_token": "vision_end_token_id",
}


class AudioConfig(BaseAudioConfig):
    """Sizes of the audio encoder; ``2 * n_window`` mel frames are one window of 2 s."""


@dataclasses.dataclass(frozen=True)
class VisionConfig(BaseVisionConfig):
    """Sizes of the vision encoder; ``window`` is a side of an attention window in pixels."""

    window: Annotated[int, integer("window_size", 2**10)]
    # As in transformers, layers beyond the last are allowed.
    full_attention_layers: Annotated[tuple[int, ...], integers("fullatt_block_indexes", MAX_LAYERS)]


@dataclasses.dataclass(frozen=True)
class ModelConfig(BaseModelConfig):
    """Sizes and token ids of the model."""

    MIN_MEL_FRAMES: ClassVar[int] = 3

    audio: AudioConfig
    vision: VisionConfig

    @property
    def audio_slots(self) -> int:
        return self.audio.n_window // 2  # four mel frames to a token

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        whole, thinker = thinker_section(values, "qwen2_5_omni")
        text = read_text(thinker)
        seconds = thinker.get(integer("seconds_per_chunk", 30))
        prompt = read_prompt(whole, thinker, text.vocabulary, TOKENS, AUDIO_TOKENS_PER_SECOND)
        return cls(
            audio=_read_audio(thinker.section("audio_config"), text.hidden, seconds),
            vision=_read_vision(thinker.section("vision_config"), text.hidden),
            text=text,
            seconds_per_chunk=seconds,
            **prompt,
        )


def _read_audio(section: ConfigSection, output: int, seconds: int) -> AudioConfig:
    audio = section.read(AudioConfig)
    check_audio(section, audio, output)
    block = 2 * AUDIO_TOKENS_PER_SECOND * seconds
    section.check(
        audio.n_window == block, "n_window", f"{block}, so that a block is one chunk of {seconds} s"
    )
    return audio


def _read_vision(section: ConfigSection, output: int) -> VisionConfig:
    vision = section.read(VisionConfig)
    check_vision(section, vision, output)
    token = vision.patch * vision.merge
    expected = f"at least patch_size * spatial_merge_size = {token}"
    section.check(vision.window >= token, "window_size", expected)
    section.check_fixed("hidden_act", "silu")
    return vision
