"""Bridges to transformers' networks, the oracle of the parity tests."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from flax.traverse_util import unflatten_dict


def to_flax(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The parameters of one of our networks, from the state of transformers' one.

    Takes the audio tower, the visual tower or the thinker's language model, the latter with or
    without its ``model.`` prefix, and with ``lm_head.weight`` where there is one.
    """
    decoder = any("embed_tokens" in name for name in state_dict)  # it keeps matrices as they are
    leaves: dict[tuple[str, ...], Any] = {}
    stacks: dict[tuple[str, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for name, tensor in state_dict.items():
        if name.startswith("audio_bos_eos_token"):  # in the checkpoint, but never used
            continue
        *parents, last = re.sub(r"mlp\.(\d)", r"mlp_\1", name.removeprefix("model.")).split(".")
        last, value = _leaf(parents[-1], last, tensor.detach().float().numpy(), decoder)
        if parents[0] in ("layers", "blocks"):
            stacks[(parents[0], *parents[2:], last)][int(parents[1])] = value
        else:
            leaves[(*parents, last)] = value
    for path, layers in stacks.items():
        leaves[path] = np.stack([layers[i] for i in range(len(layers))])
    return unflatten_dict(leaves)


def _leaf(module: str, last: str, value: np.ndarray, decoder: bool) -> tuple[str, np.ndarray]:
    if last == "bias":
        return "bias", value
    if module == "embed_tokens":
        return "embedding", value
    if value.ndim == 1:
        return "scale", value
    if value.ndim == 5:  # a patch's convolution: one matrix
        value = value.reshape(len(value), -1)
    return ("weight", value) if decoder else ("kernel", value.T)


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
