"""The parameters as one abstract tree: names, shapes and types, nothing allocated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from omnizip_jax.models.decoder import Decoder
from omnizip_jax.models.qwen2_5_omni.audio import AudioEncoder
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.vision import VisionEncoder


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike = jnp.float32) -> Any:
    """Names, shapes and types of all parameters, without allocating any.

    The modules decide; conversion, loading and the released names all follow this tree.
    """
    key = jax.random.key(0)
    audio, vision = config.audio, config.vision
    dtype = jnp.dtype(dtype)

    def shape(*sizes: int, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    trees = {
        "audio": jax.eval_shape(
            AudioEncoder(audio, dtype).init,
            key,
            shape(audio.mel_bins, 2 * audio.n_window, dtype=dtype),
            shape(),
        ),
        "vision": jax.eval_shape(
            VisionEncoder(vision, dtype).init,
            key,
            shape(vision.merge**2, vision.patch_values, dtype=jnp.uint8),
            shape(2),
        ),
        "text": jax.eval_shape(
            lambda key, tokens: Decoder(config.text, dtype).init(
                key, tokens, method=Decoder.init_all
            ),
            key,
            shape(1),
        ),
    }
    return {name: tree["params"] for name, tree in trees.items()}
