"""Sizes, tokenizer and configuration of the small model, and export in the released layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from benchmarks.random_checkpoint import build_tokenizer, released_config
from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.weight_mapping import array_infos
from omnizip_jax.testbed.clip_questions import NUMBERS, all_questions
from omnizip_jax.testbed.synthetic_clips import COLOURS, SHAPES, SOUNDS, SPEC, ClipObject

HIDDEN = 128  # of the decoder

SIZES = {
    "audio_config": {
        "encoder_layers": 2,
        "d_model": 96,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 384,
        "output_dim": HIDDEN,
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 96,
        "num_heads": 3,
        "intermediate_size": 256,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    },
    "text_config": {
        "num_hidden_layers": 5,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 384,
    },
}
# Most of it for time, so that moments of five minutes differ; no question is about positions.
MROPE_SECTION = [10, 3, 3]
SHARD = "model.safetensors"


def answers() -> list[str]:
    """All possible answers."""
    return [*COLOURS, *SHAPES, *SOUNDS, *NUMBERS, "yes", "no", "short", "long"]


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer in which every word of the questions and every answer is one token."""
    objects = [
        ClipObject(0, colour, "circle", sound)
        for colour, sound in zip(COLOURS, SOUNDS, strict=True)
    ]
    # The sounds follow each other and one recurs, so that all kinds of questions occur.
    objects = [
        dataclasses.replace(obj, second=20 * i) for i, obj in enumerate([*objects, objects[0]])
    ]
    questions = [question.text for question in all_questions(tuple(objects), seconds=600)]
    turns = ["system", "user", "assistant"]
    # The vocabulary is large enough to merge every word into one token.
    return build_tokenizer([DEFAULT_SYSTEM, *questions, *turns, *answers()], vocabulary=1024)


def small_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Content of ``config.json`` in the released layout, with the sizes of the small model."""
    config = released_config("small", tokenizer)
    thinker = config["thinker_config"]
    for part, sizes in SIZES.items():
        thinker[part].update(sizes)
    thinker["text_config"]["vocab_size"] = -(-len(tokenizer) // 64) * 64
    thinker["text_config"]["rope_scaling"]["mrope_section"] = MROPE_SECTION
    config["omnizip"] = {"grid_slots": SPEC.grid_slots}
    return config


def export(weights: Any, directory: str | Path) -> Path:
    """Write weights in the released layout in bfloat16, with configuration and tokenizer.

    The inverse of ``omnizip_jax.checkpoint.convert``.

    Args:
        weights: ``{"audio", "vision", "text"}``, the parameters of the small model.
        directory: created if it does not exist.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(directory)
    config = small_config(tokenizer)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    tensors = {}
    for leaf in array_infos(parameter_tree(ModelConfig.from_dict(config))):
        array = weights
        for key in leaf.path:
            array = array[key]
        for name, part in leaf.views(np.asarray(array)):
            values = part.reshape(leaf.released_shape).astype(ml_dtypes.bfloat16)
            tensors[name] = np.ascontiguousarray(values)
    save_file(tensors, directory / SHARD, metadata={"format": "pt"})
    return directory
