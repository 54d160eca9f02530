"""Models of both families, each as transformers' and as this library's."""

from __future__ import annotations

from copy import deepcopy

import jax
import pytest

from omnizip_jax.checkpoint.folder import load_tokenizer
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.registry import read_config
from omnizip_jax.testbed import random_checkpoint
from tests.parity.oracle import Thinker

# Qwen3-Omni's, which differ in experts, heads and DeepStack layers.
QWEN3 = {
    "qwen3": ({}, {}),
    "qwen3_one_deepstack": (
        {"num_experts": 5, "num_experts_per_tok": 3, "num_key_value_heads": 4},
        {"deepstack_visual_indexes": [1], "num_heads": 1},
    ),
    "qwen3_more_experts": (
        {"num_experts": 16, "num_attention_heads": 8, "num_experts_per_tok": 4},
        {"num_heads": 4},
    ),
}


@pytest.fixture(scope="module", params=["qwen2_5", *QWEN3])
def model(request, tmp_path_factory):
    """The weights of a family in this library, and transformers' model with the same."""
    if request.param == "qwen2_5":
        return request.getfixturevalue("params"), request.getfixturevalue("thinker")
    config = deepcopy(random_checkpoint.CONFIG)
    text, vision = QWEN3[request.param]
    config["thinker_config"]["text_config"] |= text
    config["thinker_config"]["vision_config"] |= vision
    folder = random_checkpoint.write_random_checkpoint(
        tmp_path_factory.mktemp(request.param), config=config
    )
    thinker = Thinker(folder, read_config(folder / "config.json"))
    weights = jax.device_put(thinker.weights())
    return Params(weights, thinker.config, load_tokenizer(folder)), thinker
