"""Qwen2.5-Omni: sizes, encoders, decoder, parameters, prompt markers and positions."""

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.encoders import (
    bound_decoder,
    check_spec,
    encode_window,
    encode_windows,
)
from omnizip_jax.models.qwen2_5_omni.prompt import (
    DEFAULT_SYSTEM,
    audio_tokens,
    end_markers,
    position_after,
    start_markers,
    window_positions,
)
from omnizip_jax.models.qwen2_5_omni.weight_mapping import (
    LEFT_OUT,
    abstract_params,
    array_infos,
    axis_sizes,
    parameter_tree,
)
