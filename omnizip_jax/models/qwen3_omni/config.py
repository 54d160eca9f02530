"""Sizes of Qwen3-Omni's thinker, read from the released ``config.json``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Self

from omnizip_jax.models.config import (
    MAX_LAYERS,
    BaseAudioConfig,
    BaseModelConfig,
    BaseVisionConfig,
    ConfigSection,
    TextConfig,
    check_audio,
    check_vision,
    integer,
    integers,
    read_prompt,
    read_text,
    rope_section,
    thinker_section,
)

CHUNK_TOKENS = 13  # of 100 mel frames, halved three times: one second
TOKENS = {  # ids of placeholders and markers, and their entries
    "audio_token": "audio_token_id",
    "video_token": "video_token_id",
    "audio_start_token": "audio_start_token_id",
    "audio_end_token": "audio_end_token_id",
    "vision_start_token": "vision_start_token_id",
    "vision_end_token": "vision_end_token_id",
}
WINDOW_SECONDS = 2  # as in OmniZip; the model itself has no windows


@dataclasses.dataclass(frozen=True)
class AudioConfig(BaseAudioConfig):
    """Sizes of the audio encoder; the convolutions read chunks of ``2 * n_window`` mel frames."""

    block: Annotated[int, integer("n_window_infer")]  # mel frames that attend to each other
    channels: Annotated[int, integer("downsample_hidden_size")]  # of the convolutions


@dataclasses.dataclass(frozen=True)
class VisionConfig(BaseVisionConfig):
    """Sizes of the vision encoder.

    ``positions`` is the size of the square table of learned positions; the outputs of the layers in
    ``deepstack`` go to the decoder too.
    """

    positions: Annotated[int, integer("num_position_embeddings", 2**16)]
    deepstack: Annotated[tuple[int, ...], integers("deepstack_visual_indexes", MAX_LAYERS)]

    @property
    def positions_side(self) -> int:
        """Rows and columns of the table of positions."""
        return round(self.positions**0.5)


@dataclasses.dataclass(frozen=True)
class ModelConfig(BaseModelConfig):
    """Sizes and token ids of the model."""

    MIN_MEL_FRAMES: ClassVar[int] = 1

    audio: AudioConfig
    vision: VisionConfig

    @property
    def audio_slots(self) -> int:
        return CHUNK_TOKENS * self.seconds_per_chunk

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        whole, thinker = thinker_section(values, "qwen3_omni_moe")
        vision = thinker.section("vision_config").read(VisionConfig)
        text = _read_text(thinker, len(vision.deepstack))
        _check_vision(thinker.section("vision_config"), vision, text)
        prompt = read_prompt(whole, thinker, text.vocabulary, TOKENS, CHUNK_TOKENS)
        thinker.check_fixed("seconds_per_chunk", WINDOW_SECONDS)
        return cls(
            audio=_read_audio(thinker.section("audio_config"), text.hidden),
            vision=vision,
            text=text,
            seconds_per_chunk=WINDOW_SECONDS,
            **prompt,
        )


def _read_text(thinker: ConfigSection, deepstack_layers: int) -> TextConfig:
    section = thinker.section("text_config")
    text = read_text(
        thinker,
        head_dim=section.get(integer("head_dim")),
        attention_bias=False,
        qk_norm=True,
        mrope_interleaved=True,
        experts=section.get(integer("num_experts", 2**12)),
        experts_per_token=section.get(integer("num_experts_per_tok", 2**12)),
        expert_ffn=section.get(integer("moe_intermediate_size")),
        deepstack_layers=deepstack_layers,
    )
    section.check(
        text.experts_per_token <= text.experts,
        "num_experts_per_tok",
        f"at most num_experts = {text.experts}",
    )
    section.check_fixed("attention_bias", False)
    section.check_fixed("norm_topk_prob", True)
    section.check_fixed("mlp_only_layers", [], None)
    section.check_fixed("decoder_sparse_step", 1)
    section.check_fixed("shared_expert_intermediate_size", 0)
    for name in ("interleaved", "mrope_interleaved"):
        rope_section(section).check_fixed(name, True)
    return text


def _read_audio(section: ConfigSection, output: int) -> AudioConfig:
    audio = section.read(AudioConfig)
    check_audio(section, audio, output)
    section.check(audio.n_window == 50, "n_window", "50, so that a chunk is 100 mel frames, 1 s")
    window = 100 * WINDOW_SECONDS
    section.check(
        audio.block % window == 0,
        "n_window_infer",
        f"a multiple of {window}, the mel frames of 2 s",
    )
    section.check_fixed("scale_embedding", False)
    return audio


def _check_vision(section: ConfigSection, vision: VisionConfig, text: TextConfig) -> None:
    check_vision(section, vision, text.hidden)
    section.check(
        vision.positions_side**2 == vision.positions, "num_position_embeddings", "a square number"
    )
    layers = vision.deepstack
    section.check(
        0 < len(layers) <= text.layers
        and list(layers) == sorted(set(layers))
        and layers[-1] < vision.layers,
        "deepstack_visual_indexes",
        f"from 1 to {text.layers} increasing numbers of layers below depth = {vision.layers}",
    )
    section.check_fixed("hidden_act", "gelu_pytorch_tanh")
