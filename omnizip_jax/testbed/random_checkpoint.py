"""A tiny Qwen3-Omni checkpoint with random weights in the released layout, for demo and tests."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from omnizip_jax.models import qwen3_omni
from omnizip_jax.models.weight_mapping import released_shapes

TOKENIZER = Path(__file__).parent / "small"  # tokenizer and chat template are those of this model
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_omni_moe",
    "thinker_config": {
        "model_type": "qwen3_omni_moe_thinker",
        "audio_config": {
            "num_mel_bins": 128,
            "encoder_layers": 2,
            "d_model": 64,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "output_dim": 64,
            "n_window": 50,
            "n_window_infer": 800,
            "downsample_hidden_size": 16,
            "activation_function": "gelu",
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 96,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1, 2],
            "hidden_act": "gelu_pytorch_tanh",
        },
        "text_config": {
            "vocab_size": 576,
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 48,
            "moe_intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [6, 5, 5],
                "interleaved": True,
            },
            "max_position_embeddings": 65536,
            "tie_word_embeddings": False,
        },
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
        "audio_token_id": 523,
        "image_token_id": 528,
        "video_token_id": 529,
        "audio_start_token_id": 524,
        "audio_end_token_id": 525,
        "vision_start_token_id": 526,
        "vision_end_token_id": 527,
    },
    "omnizip": {"grid_slots": 36},
}


def write_random_checkpoint(
    folder: Path, seed: int = 0, config: Mapping[str, Any] = CONFIG
) -> Path:
    """Write a checkpoint of a few hundred thousand random bfloat16 values; returns the folder.

    Every expert is a tensor of its own, as released.

    Args:
        config: content of ``config.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(TOKENIZER / name, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = released_shapes(qwen3_omni.parameter_tree(qwen3_omni.ModelConfig.from_dict(config)))
    random = np.random.default_rng(seed)
    tensors = {
        name: random_values(name, shape, random).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random values of a released tensor, float32, that keep activations near unit scale."""
    values = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        values *= 0.1
    elif len(shape) == 1:  # the scale of a norm
        values = 1 + 0.1 * values
    elif not name.endswith("embed_tokens.weight"):
        values /= math.sqrt(math.prod(shape[1:]))
    return values
