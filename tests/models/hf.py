"""Bridges to transformers' networks, the oracle of the parity tests."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from flax.traverse_util import unflatten_dict
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as sizes
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as networks

from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.qwen2_5_omni.config import AudioConfig, VisionConfig

TEXT_CONFIG = TextConfig(
    vocabulary=100,
    layers=3,
    hidden=64,
    heads=4,
    kv_heads=2,
    ffn=96,
    rope_theta=1e4,
    mrope_section=(2, 3, 3),
    rms_eps=1e-6,
    max_positions=512,
    tied=True,
)


def oracle(config: AudioConfig | VisionConfig | TextConfig) -> torch.nn.Module:
    """transformers' network of these sizes, with random weights and attention written out."""
    if isinstance(config, AudioConfig):
        network = networks.Qwen2_5OmniAudioEncoder
        theirs = sizes.Qwen2_5OmniAudioEncoderConfig(
            num_mel_bins=config.mel_bins,
            encoder_layers=config.layers,
            d_model=config.hidden,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn,
            n_window=config.n_window,
            output_dim=config.output,
        )
    elif isinstance(config, VisionConfig):
        network = networks.Qwen2_5OmniVisionEncoder
        theirs = sizes.Qwen2_5OmniVisionEncoderConfig(
            depth=config.layers,
            hidden_size=config.hidden,
            num_heads=config.heads,
            intermediate_size=config.ffn,
            in_channels=config.channels,
            patch_size=config.patch,
            temporal_patch_size=config.temporal_patch,
            spatial_merge_size=config.merge,
            window_size=config.window,
            fullatt_block_indexes=list(config.full_attention_layers),
            out_hidden_size=config.output,
        )
    else:
        network = networks.Qwen2_5OmniThinkerTextModel
        theirs = sizes.Qwen2_5OmniTextConfig(
            vocab_size=config.vocabulary,
            num_hidden_layers=config.layers,
            hidden_size=config.hidden,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(config.mrope_section),
            },
            rms_norm_eps=config.rms_eps,
        )
    theirs._attn_implementation = "eager"
    return randomise(network(theirs))


def random_block(length: int, config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Random embeddings, and growing positions that differ on the three axes."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((length, config.hidden)).astype(np.float32)
    return embeddings, np.cumsum(rng.integers(0, 4, (3, length)), axis=1).astype(np.int32)


def to_flax(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The parameters of one of our networks, from the state of transformers' one.

    Takes the audio tower, the visual tower or the thinker's language model, the latter with or
    without its ``model.`` prefix, and with ``lm_head.weight`` where there is one.
    """
    leaves: dict[tuple[str, ...], Any] = {}
    stacks: dict[tuple[str, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for name, tensor in state_dict.items():
        if name.startswith("audio_bos_eos_token"):  # in the checkpoint, but never used
            continue
        *parents, last = re.sub(r"mlp\.(\d)", r"mlp_\1", name.removeprefix("model.")).split(".")
        last, value = _leaf(parents[-1], last, tensor.detach().float().numpy())
        if parents[0] in ("layers", "blocks"):
            stacks[(parents[0], *parents[2:], last)][int(parents[1])] = value
        else:
            leaves[(*parents, last)] = value
    for path, layers in stacks.items():
        leaves[path] = np.stack([layers[i] for i in range(len(layers))])
    return unflatten_dict(leaves)


def _leaf(module: str, last: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    if last == "bias":
        return "bias", value
    if module == "embed_tokens":
        return "embedding", value
    if value.ndim == 1:
        return "scale", value
    if value.ndim == 5:  # a patch's convolution: one matrix
        value = value.reshape(len(value), -1)
    return ("kernel", value.T) if value.ndim == 3 else ("weight", value)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that keep activations near 1 and attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                sharpen = 2.0 if re.search(r"\.(q|k|q_proj|k_proj)\.weight", name) else 1.0
                parameter.copy_(sharpen * noise / fan_in**0.5)
            else:
                centre = 1.0 if re.search(r"(norm\w*|ln_\w+)\.weight", name) else 0.0
                parameter.copy_(centre + 0.1 * noise)
    return module.eval()
