"""Frozen settings: the model's sizes, the shape of a window, and the compression rule.

All are hashable dataclasses, so that they can be static arguments of ``jax.jit``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


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
        """Build from the parsed ``config.json`` of the whole model or of the thinker alone."""
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
        )


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """The fixed shape of one window: what every clip and every stream is cut into.

    ``grid_slots`` bounds the tokens of one temporal grid (two frames); pictures are resized to
    fit. 16:9 pictures use all 144 of the default (448 x 252 pixels).
    """

    seconds: int = 2
    audio_slots: int = 50
    grids: int = 2
    grid_slots: int = 144

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"WindowSpec.{field.name} must be a positive integer, got {value!r}"
                )

    @property
    def video_slots(self) -> int:
        return self.grids * self.grid_slots

    @property
    def slots(self) -> int:
        """Tokens that one window can hold: video, then audio."""
        return self.video_slots + self.audio_slots


@dataclasses.dataclass(frozen=True)
class OmniZipConfig:
    """The compression rule and its settings; the defaults keep 45 % of the tokens.

    Args:
        rho_audio: share of the audio tokens that is not salient (paper section 3.3).
        rho_video: share of the video tokens to discard over the whole clip.
        rho_min, rho_max: bounds of a window's video pruning rate (eq. 5).
        merge_size: G, the most tokens merged into one anchor; 0 means no anchors.
        anchor_ratio: anchors of a window as a share of its audio tokens.
        knn: neighbours in DPC-KNN (eq. 7).
        relative_distance: let DPC-KNN measure distances relative to the largest in the grid, so
            that the scale of the features does not matter; not in the paper (docs/accuracy.md).
        rule: "paper", or "published" for the rule of the authors' newest code.
        causal: plan window by window without looking ahead, as a stream must (docs/streaming.md).
        key_windows: causal audio scores look at the keys of so many past windows.
        threshold_windows: causal ranking looks at the scores of so many recent windows.

    Raises:
        ValueError: a setting outside its range, or a video budget that no rates inside the
            bounds can meet.
    """

    rho_audio: float = 0.3
    rho_video: float = 0.6
    rho_min: float = 0.35
    rho_max: float = 0.75
    merge_size: int = 3
    anchor_ratio: float = 0.05
    knn: int = 5
    relative_distance: bool = False
    rule: Literal["paper", "published"] = "paper"
    causal: bool = False
    key_windows: int = 32
    threshold_windows: int = 16

    def __post_init__(self):
        for name in ("rho_audio", "rho_video", "rho_min", "rho_max", "anchor_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"OmniZipConfig.{name} is a share between 0 and 1, got {value}")
        if self.rho_min > self.rho_max:
            raise ValueError(
                f"OmniZipConfig: rho_min {self.rho_min} exceeds rho_max {self.rho_max}"
            )
        if self.merge_size < 0 or self.knn < 1:
            raise ValueError(
                "OmniZipConfig: merge_size must be at least 0 and knn at least 1, "
                f"got {self.merge_size} and {self.knn}"
            )
        if self.rule not in ("paper", "published"):
            raise ValueError(
                f'OmniZipConfig.rule must be "paper" or "published", got {self.rule!r}'
            )
        if self.key_windows < 1 or self.threshold_windows < 1:
            raise ValueError(
                "OmniZipConfig: key_windows and threshold_windows must be at least 1, got "
                f"{self.key_windows} and {self.threshold_windows}"
            )
        if self.relative_distance and self.rule != "paper":
            raise ValueError(
                "the published rule measures 1 - cosine: relative_distance goes with the paper's"
            )
        if self.causal and self.rule != "paper":
            raise ValueError(
                "the published rule needs the whole clip: causal goes with the paper's"
            )
        # The published rule lets the budget slip; the paper's meets it, so it must be in reach.
        if self.rule == "paper" and self.rho_video > self.rho_max:
            raise ValueError(
                f"no rates inside the bounds can discard {self.rho_video:.0%} of the video: "
                f"raise rho_max (now {self.rho_max}) to at least {self.rho_video}"
            )
        if self.rule == "paper" and self.rho_video < self.rho_min:
            raise ValueError(
                f"no rates inside the bounds can discard only {self.rho_video:.0%} of the video: "
                f"lower rho_min (now {self.rho_min}) to at most {self.rho_video}"
            )

    @classmethod
    def published(cls, **settings: Any) -> OmniZipConfig:
        """The rule of the authors' newest code, quirks included, with the same settings."""
        return cls(rule="published", **settings)
