"""What stands around a clip in the prompt: each pair of markers shares one position."""

from __future__ import annotations

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig

DEFAULT_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)


def start_markers(config: ModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens before a clip: of the picture, then of the sound inside it."""
    markers = (config.vision_start_token, video), (config.audio_start_token, audio)
    return tuple(token for token, used in markers if used)


def end_markers(config: ModelConfig, audio: bool, video: bool) -> tuple[int, ...]:
    """Tokens after a clip, the other way round."""
    markers = (config.audio_end_token, audio), (config.vision_end_token, video)
    return tuple(token for token, used in markers if used)
