"""A checkpoint in the released Qwen2.5-Omni layout with random weights.

It has ``config.json``, sharded safetensors with an index, tensors of the speech parts that
conversion leaves out, a byte-level tokenizer and a chat template, so code that reads the released
files can be tested without a download.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.weight_mapping import released_shapes
from omnizip_jax.testbed.random_checkpoint import random_values

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)

# The training text of the tokenizer; a random model answers with its words.
SENTENCES = (
    "A small blue circle moves slowly from left to right while a low tone plays.",
    "Then the red square appears, the sound becomes louder, and the circle stops.",
    "What is said when the door opens? Somebody says hello and closes the window.",
    "The music fades, the picture turns dark, and after two seconds a bell rings.",
    "Describe what happens in this video, and what can be heard at the same time.",
    "You are a helpful assistant. The user asks a question about the sound and the picture.",
)

# Renders conversations as the released template does.
CHAT_TEMPLATE = r"""
{%- set media = {
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
    "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
} -%}
{%- if messages[0]["role"] != "system" -%}
    {{- "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" ~ message["role"] ~ "\n" -}}
    {%- if message["content"] is string -%}
        {{- message["content"] -}}
    {%- else -%}
        {%- for part in message["content"] -%}
            {{- media[part["type"]] if part["type"] in media else part["text"] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\n" -}}
{%- endif -%}
"""

# Entries of the released configuration that depend on the size.
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tiny": {
        "audio_config": {
            "encoder_layers": 2,
            "d_model": 32,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "output_dim": 64,
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 44,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
        },
        "text_config": {
            "vocab_size": 512,
            "num_hidden_layers": 4,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "rope_scaling": {"mrope_section": [2, 3, 3]},
        },
        "omnizip": {"grid_slots": 16},
    },
    "small": {
        "audio_config": {
            "encoder_layers": 4,
            "d_model": 256,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 1024,
            "output_dim": 512,
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 256,
            "num_heads": 4,
            "intermediate_size": 684,
            "out_hidden_size": 512,
            "fullatt_block_indexes": [1, 3],
        },
        "text_config": {
            "vocab_size": 512,
            "num_hidden_layers": 8,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "intermediate_size": 1408,
            "rope_scaling": {"mrope_section": [8, 12, 12]},
        },
    },
    "3b": {
        "audio_config": {
            "encoder_layers": 32,
            "d_model": 1280,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "output_dim": 2048,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "text_config": {
            "vocab_size": 151936,
            "num_hidden_layers": 36,
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "rope_scaling": {"mrope_section": [16, 24, 24]},
        },
    },
}

# Tensors in place of the speech parts of the released files, which conversion leaves out.
SPEECH_TENSORS = {
    "talker.thinker_to_talker_proj.weight": (16, 32),
    "talker.thinker_to_talker_proj.bias": (16,),
    "talker.codec_head.weight": (24, 16),
    "token2wav.code2wav_dit_model.proj_out.weight": (8, 16),
    "token2wav.code2wav_bigvgan_model.conv_pre.weight": (8, 8, 3),
}

SHARD_BYTES = 4 * 1024**3


def write_random_checkpoint(directory: str | Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write a released-layout checkpoint with random bfloat16 weights; returns its folder.

    Args:
        directory: created if need be; files of an earlier call are overwritten.
        size: "tiny" (tests), "small" (generates within seconds on two CPU cores), or "3b" (the
            released shapes, 9.4 GB).
        seed: of the weights. The same seed and size give the same files.

    Raises:
        ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(directory)
    config = released_config(size, tokenizer)
    _write_json(directory / "config.json", config)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    _write_json(directory / "generation_config.json", generation)
    _write_shards(directory, _tensor_shapes(config), _word_ids(tokenizer), seed)
    return directory


def build_tokenizer(
    sentences: Iterable[str] = SENTENCES, vocabulary: int = 480
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the released special tokens and a chat template.

    It encodes any text; its ids differ from the released ones.

    Args:
        sentences: training text.
        vocabulary: maximum number of tokens, without the special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE.strip(),
    )


def released_config(size: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Content of ``config.json`` in the released layout, with the sizes of ``SIZES[size]``."""
    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    sizes = SIZES[size]
    audio = {
        "model_type": "qwen2_5_omni_audio_encoder",
        "num_mel_bins": 128,
        "n_window": 100,
        "activation_function": "gelu",
        "max_source_positions": 1500,
        "scale_embedding": False,
        **sizes["audio_config"],
    }
    vision = {
        "model_type": "qwen2_5_omni_vision_encoder",
        "in_channels": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "hidden_act": "silu",
        "tokens_per_second": 25,
        **sizes["vision_config"],
    }
    text = {
        "model_type": "qwen2_5_omni_text",
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        **sizes["text_config"],
        "rope_scaling": {
            "rope_type": "default",
            "type": "default",
            **sizes["text_config"]["rope_scaling"],
        },
    }
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_talker": True,
        "torch_dtype": "bfloat16",
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_config": audio,
            "vision_config": vision,
            "text_config": text,
            "tie_word_embeddings": False,
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "bos_token_id": token["<|im_start|>"],
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
            "audio_token_index": token["<|AUDIO|>"],
            "image_token_index": token["<|IMAGE|>"],
            "video_token_index": token["<|VIDEO|>"],
            "audio_start_token_id": token["<|audio_bos|>"],
            "audio_end_token_id": token["<|audio_eos|>"],
            "vision_start_token_id": token["<|vision_bos|>"],
            "vision_end_token_id": token["<|vision_eos|>"],
        },
        "talker_config": {
            "model_type": "qwen2_5_omni_talker",
            "audio_start_token_id": token["<|audio_bos|>"],
            "audio_end_token_id": token["<|audio_eos|>"],
            "vision_start_token_id": token["<|vision_bos|>"],
            "vision_end_token_id": token["<|vision_eos|>"],
            "tts_text_start_token_id": token["<|im_start|>"],
            "tts_text_end_token_id": token["<|im_end|>"],
            "tts_text_pad_token_id": token["<|endoftext|>"],
        },
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
        **({"omnizip": sizes["omnizip"]} if "omnizip" in sizes else {}),
    }


def _word_ids(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Ids of whole words, and of the end of an answer."""
    words = sorted({f" {word}" for sentence in SENTENCES for word in re.findall(r"\w+", sentence)})
    pieces = [tokenizer.encode(word) for word in words]
    return np.array([ids[0] for ids in pieces if len(ids) == 1] + [tokenizer.eos_token_id])


def _random_tensor(
    name: str, shape: tuple[int, ...], words: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Random weights of a tensor; those of the logits head prefer words."""
    values = random_values(name, shape, rng)
    if name.endswith("lm_head.weight"):
        # Tokens that are not words become unlikely, so that a random model answers in words.
        other = np.ones(shape[0], bool)
        other[words] = False
        values[other] *= 0.1
    return values.astype(ml_dtypes.bfloat16)


def _write_shards(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], words: np.ndarray, seed: int
) -> None:
    """Write all tensors, one shard in memory at a time, and the index."""
    rng = np.random.default_rng(seed)
    shards = list(_split(shapes))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random_tensor(name, shapes[name], words, rng) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(_bytes(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _split(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Divide the names in order into at least two shards of about equal size."""
    total = sum(_bytes(shape) for shape in shapes.values())
    limit = min(SHARD_BYTES, total / 2)
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        names.append(name)
        size += _bytes(shape)
        if size >= limit:
            yield names
            names, size = [], 0
    if names:
        yield names


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the released files: the thinker's and the speech parts'."""
    output = config["thinker_config"]["audio_config"]["output_dim"]
    unused = {"thinker.audio_tower.audio_bos_eos_token.weight": (2, output)}
    return released_shapes(parameter_tree(ModelConfig.from_dict(config))) | unused | SPEECH_TENSORS
