"""Qwen2.5-Omni: sizes, encoders, decoder, positions, prompt markers, released names."""

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import (
    bound_decoder,
    check_spec,
    encode_window,
    encode_windows,
    weights_dtype,
)
from omnizip_jax.models.qwen2_5_omni.parameters import abstract_params
from omnizip_jax.models.qwen2_5_omni.positions import (
    audio_tokens,
    position_after,
    window_positions,
)
from omnizip_jax.models.qwen2_5_omni.prompt import DEFAULT_SYSTEM, end_markers, start_markers
from omnizip_jax.models.qwen2_5_omni.released import LEFT_OUT, Leaf, released_leaves

__all__ = [
    "DEFAULT_SYSTEM",
    "LEFT_OUT",
    "Leaf",
    "ModelConfig",
    "abstract_params",
    "audio_tokens",
    "bound_decoder",
    "check_spec",
    "encode_window",
    "encode_windows",
    "end_markers",
    "position_after",
    "released_leaves",
    "start_markers",
    "weights_dtype",
    "window_positions",
]
