"""Bridges to transformers' networks, the oracle of the parity tests."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flax.traverse_util import unflatten_dict
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as sizes
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as networks
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as sizes3
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as networks3

from omnizip_jax.models.config import BaseAudioConfig, BaseVisionConfig, TextConfig
from omnizip_jax.models.qwen3_omni.config import AudioConfig as AudioConfig3
from omnizip_jax.models.qwen3_omni.config import VisionConfig as VisionConfig3

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


# Three of Qwen3's shape: they differ in experts, heads and DeepStack layers.
TEXT_CONFIGS_3 = [
    dataclasses.replace(
        TEXT_CONFIG,
        hidden=32,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=16,
        mrope_section=section,
        tied=False,
        attention_bias=False,
        qk_norm=True,
        mrope_interleaved=True,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn=24,
        deepstack_layers=deepstack,
    )
    for heads, kv_heads, section, experts, chosen, deepstack in (
        (4, 2, (4, 2, 2), 8, 2, 2),
        (2, 1, (2, 3, 3), 5, 3, 1),
        (6, 6, (4, 3, 1), 16, 4, 3),
    )
]


def oracle(config: BaseAudioConfig | BaseVisionConfig | TextConfig) -> torch.nn.Module:
    """transformers' network of these sizes, with random weights and attention written out."""
    common: dict[str, Any]
    network: Any
    if isinstance(config, BaseAudioConfig):
        common = dict(
            num_mel_bins=config.mel_bins,
            encoder_layers=config.layers,
            d_model=config.hidden,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn,
            n_window=config.n_window,
            output_dim=config.output,
        )
        if isinstance(config, AudioConfig3):
            network = networks3.Qwen3OmniMoeAudioEncoder
            theirs = sizes3.Qwen3OmniMoeAudioEncoderConfig(
                n_window_infer=config.block, downsample_hidden_size=config.channels, **common
            )
        else:
            network = networks.Qwen2_5OmniAudioEncoder
            theirs = sizes.Qwen2_5OmniAudioEncoderConfig(**common)
    elif isinstance(config, BaseVisionConfig):
        common = dict(
            depth=config.layers,
            hidden_size=config.hidden,
            num_heads=config.heads,
            intermediate_size=config.ffn,
            in_channels=config.channels,
            patch_size=config.patch,
            temporal_patch_size=config.temporal_patch,
            spatial_merge_size=config.merge,
            out_hidden_size=config.output,
        )
        if isinstance(config, VisionConfig3):
            network = networks3.Qwen3OmniMoeVisionEncoder
            theirs = sizes3.Qwen3OmniMoeVisionEncoderConfig(
                num_position_embeddings=config.positions,
                deepstack_visual_indexes=list(config.deepstack),
                **common,
            )
        else:
            network = networks.Qwen2_5OmniVisionEncoder
            theirs = sizes.Qwen2_5OmniVisionEncoderConfig(
                window_size=config.window,
                fullatt_block_indexes=list(config.full_attention_layers),
                **common,
            )
    else:
        rope = {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": list(config.mrope_section),
        }
        common = dict(
            vocab_size=config.vocabulary,
            num_hidden_layers=config.layers,
            hidden_size=config.hidden,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn,
            rms_norm_eps=config.rms_eps,
        )
        if config.experts:
            network = networks3.Qwen3OmniMoeThinkerTextModel
            theirs = sizes3.Qwen3OmniMoeTextConfig(
                head_dim=config.head_dim,
                num_experts=config.experts,
                num_experts_per_tok=config.experts_per_token,
                moe_intermediate_size=config.expert_ffn,
                rope_parameters=rope | {"mrope_interleaved": True},
                **common,
            )
        else:
            network = networks.Qwen2_5OmniThinkerTextModel
            theirs = sizes.Qwen2_5OmniTextConfig(rope_parameters=rope, **common)
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
        name = re.sub(r"(mlp|merger_list)\.(\d)", r"\1_\2", name.removeprefix("model."))
        for path, value in _leaves(name.split("."), tensor.detach().float().numpy()):
            if path[0] in ("layers", "blocks"):
                stacks[(path[0], *path[2:])][int(path[1])] = value
            else:
                leaves[tuple(path)] = value
    for path, layers in stacks.items():
        leaves[path] = np.stack([layers[i] for i in range(len(layers))])
    return unflatten_dict(leaves)


def _leaves(name: list[str], value: np.ndarray) -> Iterator[tuple[list[str], np.ndarray]]:
    """Our parameters of one of transformers', which has the experts' gate and up in one."""
    *parents, last = name
    if parents[-1] == "experts":
        parts = np.split(value, 2, axis=1) if last == "gate_up_proj" else [value]
        names = ["gate_proj", "up_proj"] if last == "gate_up_proj" else [last]
        for own, part in zip(names, parts, strict=True):
            yield [*parents, own, "weight"], part
    elif last == "bias":
        yield name, value
    elif parents[-1] in ("embed_tokens", "pos_embed"):
        yield [*parents, "embedding"], value
    elif value.ndim == 1:
        yield [*parents, "scale"], value
    elif value.ndim in (3, 4):  # convolutions over time, or over time and frequency
        yield [*parents, "kernel"], value.T
    else:  # a patch's convolution is one matrix
        yield [*parents, "weight"], value.reshape(len(value), -1)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that keep activations near 1 and attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter.shape[-1] if "experts" in name else parameter[0].numel()
                sharpen = 2.0 if re.search(r"\.(q|k|q_proj|k_proj)\.weight", name) else 1.0
                parameter.copy_(sharpen * noise / fan_in**0.5)
            else:
                centre = 1.0 if re.search(r"(norm\w*|ln_\w+)\.weight", name) else 0.0
                parameter.copy_(centre + 0.1 * noise)
    return module.eval()


def audio_windows(mel: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip [bins, L] as windows [W, bins, frames], padded with zeros, and their lengths."""
    count = math.ceil(mel.shape[1] / frames)
    padded = np.pad(mel, ((0, 0), (0, count * frames - mel.shape[1])))
    lengths = np.minimum(frames, mel.shape[1] - frames * np.arange(count))
    return padded.reshape(len(mel), count, frames).swapaxes(0, 1), lengths


def run_audio(oracle: Any, config: BaseAudioConfig, *clips: np.ndarray) -> list[np.ndarray]:
    """Tokens of clips, and the queries and keys of the last layer [T, heads, head_dim]."""
    outputs = {}
    last = oracle.layers[-1].self_attn
    hooks = [
        getattr(last, name).register_forward_hook(
            lambda module, args, out, name=name: outputs.__setitem__(name, out)
        )
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        tokens = oracle(
            torch.from_numpy(np.concatenate(clips, axis=1)),
            feature_lens=torch.tensor([mel.shape[1] for mel in clips]),
        ).last_hidden_state
    for hook in hooks:
        hook.remove()
    shape = (-1, config.heads, config.head_dim)
    return [tokens.numpy(), *(outputs[n].numpy().reshape(shape) for n in ("q_proj", "k_proj"))]
