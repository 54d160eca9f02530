"""Qwen3-Omni: sizes, encoders, decoder, parameters, prompt markers and positions."""

from omnizip_jax.models.decoder import bound_decoder
from omnizip_jax.models.encode import check_spec
from omnizip_jax.models.prompt import end_markers, start_markers, window_positions
from omnizip_jax.models.qwen3_omni.audio import audio_tokens
from omnizip_jax.models.qwen3_omni.config import ModelConfig
from omnizip_jax.models.qwen3_omni.encoders import encode_window, encode_windows
from omnizip_jax.models.qwen3_omni.prompt import (
    DEFAULT_SYSTEM,
    MARKERS_SHARE_POSITION,
    position_after,
    token_order,
)
from omnizip_jax.models.qwen3_omni.weight_mapping import LEFT_OUT, parameter_tree
