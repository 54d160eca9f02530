"""The parameters of Qwen2.5-Omni, and the tensors of released files that are left out."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from omnizip_jax.models import weight_mapping
from omnizip_jax.models.encoder_layers import AUDIO_AXES
from omnizip_jax.models.qwen2_5_omni import vision
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig

# Tensors of released files that are not used: speech output, and what is computed.
LEFT_OUT = re.compile(
    r"(?P<part>talker|token2wav)\..*"
    r"|thinker\.audio_tower\.audio_bos_eos_token\.weight"
    r"|.*\.(inv_freq|positional_embedding)"
)


def parameter_tree(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """The description of every parameter (``ArrayInfo``), from which everything else derives."""
    dtype = jnp.dtype(dtype)
    mel = (config.audio.mel_bins, 2 * config.audio.n_window)
    return weight_mapping.describe_model(
        config,
        audio=(AudioEncoder(config.audio, dtype), mel),
        vision=vision.VisionEncoder(config.vision, dtype),
        axes={"audio": AUDIO_AXES, "vision": vision.AXES},
    )
