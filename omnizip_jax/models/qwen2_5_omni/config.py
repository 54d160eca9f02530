"""The sizes of Qwen2.5-Omni's thinker, read from the released ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnizip_jax.config import WindowSpec
from omnizip_jax.models.config import TextConfig

_FRAMES_PER_SECOND = 2


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Sizes of the audio encoder (``thinker_config.audio_config``)."""

    mel_bins: int
    layers: int
    hidden: int
    heads: int
    ffn: int
    n_window: int  # half an attention block, in mel frames; a block is one 2 s window
    output: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder (``thinker_config.vision_config``)."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    channels: int
    patch: int  # pixels along a patch's side
    temporal_patch: int  # frames in a grid
    merge: int  # patches along the side of a merged token
    window: int  # pixels along the side of an attention window
    full_attention_layers: tuple[int, ...]
    output: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        """Values in one patch, channels x frames x rows x columns (1176 as released)."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the networks need to know, read from the released ``config.json``."""

    audio: AudioConfig
    vision: VisionConfig
    text: TextConfig
    audio_token: int
    video_token: int
    audio_start_token: int
    audio_end_token: int
    vision_start_token: int
    vision_end_token: int
    positions_per_second: int
    seconds_per_chunk: int
    grid_slots: int = 144  # tokens of a grid that the model was trained on

    @property
    def spec(self) -> WindowSpec:
        """The shape of the windows that the model reads."""
        vision = self.vision
        return WindowSpec(
            seconds=self.seconds_per_chunk,
            audio_slots=self.audio.n_window // 2,  # four mel frames to a token
            grids=_FRAMES_PER_SECOND * self.seconds_per_chunk // vision.temporal_patch,
            grid_slots=self.grid_slots,
            patch=vision.patch,
            merge=vision.merge,
            temporal_patch=vision.temporal_patch,
            mel_bins=self.audio.mel_bins,
        )

    @property
    def window_positions(self) -> int:
        """Positions between the beginnings of two windows (50 as released)."""
        return self.positions_per_second * self.seconds_per_chunk

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a released ``config.json``; raises ``ValueError`` naming what is missing."""
        path = Path(path)
        try:
            values = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a readable JSON file ({error})") from error
        try:
            return cls.from_dict(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not a Qwen2.5-Omni configuration; missing or malformed entry {error}"
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from the parsed ``config.json`` of the whole model or of the thinker alone.

        An entry of our own, ``"omnizip": {"grid_slots": 36}``, is optional.
        """
        thinker = values.get("thinker_config", values)
        audio, vision, text = (thinker[f"{name}_config"] for name in ("audio", "vision", "text"))
        # transformers 5 writes `rope_parameters`; the released files have `rope_scaling`.
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        return cls(
            audio=AudioConfig(
                mel_bins=audio["num_mel_bins"],
                layers=audio["encoder_layers"],
                hidden=audio["d_model"],
                heads=audio["encoder_attention_heads"],
                ffn=audio["encoder_ffn_dim"],
                n_window=audio["n_window"],
                output=audio["output_dim"],
            ),
            vision=VisionConfig(
                layers=vision["depth"],
                hidden=vision["hidden_size"],
                heads=vision["num_heads"],
                ffn=vision["intermediate_size"],
                channels=vision["in_channels"],
                patch=vision["patch_size"],
                temporal_patch=vision["temporal_patch_size"],
                merge=vision["spatial_merge_size"],
                window=vision["window_size"],
                full_attention_layers=tuple(vision["fullatt_block_indexes"]),
                output=vision["out_hidden_size"],
            ),
            text=TextConfig(
                vocabulary=text["vocab_size"],
                layers=text["num_hidden_layers"],
                hidden=text["hidden_size"],
                heads=text["num_attention_heads"],
                kv_heads=text["num_key_value_heads"],
                ffn=text["intermediate_size"],
                rope_theta=float(text.get("rope_theta") or rope["rope_theta"]),
                mrope_section=tuple(rope["mrope_section"]),
                rms_eps=text["rms_norm_eps"],
                max_positions=text["max_position_embeddings"],
                tied=bool(thinker.get("tie_word_embeddings", False)),
            ),
            audio_token=thinker["audio_token_index"],
            video_token=thinker["video_token_index"],
            audio_start_token=thinker["audio_start_token_id"],
            audio_end_token=thinker["audio_end_token_id"],
            vision_start_token=thinker["vision_start_token_id"],
            vision_end_token=thinker["vision_end_token_id"],
            positions_per_second=thinker["position_id_per_seconds"],
            seconds_per_chunk=thinker["seconds_per_chunk"],
            grid_slots=values.get("omnizip", {}).get("grid_slots", 144),
        )
