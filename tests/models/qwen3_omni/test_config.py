"""The released configuration of Qwen3-Omni: its two forms, and entries that are refused by name."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from omnizip_jax.models.qwen3_omni import ModelConfig
from omnizip_jax.testbed.random_checkpoint import CONFIG
from tests.checkpoint.test_config import AUDIO, GONE, ROPE, TEXT, VISION, edited

READ = ModelConfig.from_dict(CONFIG)


def test_sizes():
    text = READ.text
    assert (text.hidden, text.heads, text.kv_heads, text.head_dim) == (64, 4, 2, 32)
    assert (text.experts, text.experts_per_token, text.expert_ffn) == (8, 2, 48)
    assert text.qk_norm and text.mrope_interleaved and not text.attention_bias
    assert (text.mrope_section, text.rope_theta, text.deepstack_layers) == ((6, 5, 5), 1e6, 3)
    assert READ.vision.deepstack == (0, 1, 2) and READ.vision.positions_side == 12
    assert (READ.audio.block, READ.audio.channels) == (800, 16)
    spec = READ.spec
    assert (spec.audio_slots, spec.grids, spec.patch, spec.positions_per_second) == (26, 2, 16, 13)
    assert (READ.audio_token, READ.video_token, READ.vision_end_token) == (523, 529, 527)


def test_thinker_alone():
    values = CONFIG["thinker_config"] | {"omnizip": CONFIG["omnizip"]}
    assert ModelConfig.from_dict(values) == READ


def test_as_transformers_writes_it():
    """``rope_parameters`` in place of ``rope_scaling`` and ``rope_theta``."""
    values = deepcopy(CONFIG)
    text: dict[str, Any] = values["thinker_config"]["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    text |= {"mlp_only_layers": [], "decoder_sparse_step": 1, "attention_bias": False}
    text |= {"shared_expert_intermediate_size": 0, "sliding_window": None}
    assert ModelConfig.from_dict(values) == READ


@pytest.mark.parametrize(
    ("path", "values", "expected"),
    [
        ("model_type", ["qwen3_omni", "qwen2_5_omni"], "'qwen3_omni_moe' or"),
        ("thinker_config.position_id_per_seconds", [25, 12, 0, GONE], "13|an integer"),
        ("thinker_config.seconds_per_chunk", [1, 4], "2 "),
        ("thinker_config.audio_token_id", [576, "523", GONE, 529], "an integer from 0 to 575|no o"),
        (f"{TEXT}.head_dim", [0, "32", None, GONE, 16], "an integer|the sum 8"),
        (f"{TEXT}.num_key_value_heads", [3], "a divisor of num_attention_heads = 4"),
        (f"{TEXT}.num_experts", [0, 1, True, "8", GONE], "an integer|at most num_experts"),
        (f"{TEXT}.num_experts_per_tok", [0, 9, 2.0, GONE], "an integer|at most num_experts = 8"),
        (f"{TEXT}.moe_intermediate_size", [0, None, GONE], "an integer"),
        (f"{TEXT}.norm_topk_prob", [False, None], "True"),
        (f"{TEXT}.attention_bias", [True], "False"),
        (f"{TEXT}.mlp_only_layers", [[0]], r"\[\] or None"),
        (f"{TEXT}.decoder_sparse_step", [2], "1 "),
        (f"{TEXT}.shared_expert_intermediate_size", [512], "0 "),
        (f"{TEXT}.hidden_act", ["gelu"], "'silu'"),
        (f"{TEXT}.rope_theta", [0, "1e6"], "a positive number"),
        (f"{ROPE}.interleaved", [False, None], "True"),
        (f"{ROPE}.mrope_interleaved", [False], "True"),
        (f"{ROPE}.mrope_section", [[6, 5], [8, 5, 5], None, GONE], "the sum 16|a list of"),
        (f"{AUDIO}.n_window", [100, 0], "50, so that a chunk|an integer"),
        (f"{AUDIO}.n_window_infer", [100, 300, GONE], "a multiple of 200|an integer"),
        (f"{AUDIO}.downsample_hidden_size", [0, GONE], "an integer"),
        (f"{AUDIO}.output_dim", [32], "64, the decoder's hidden_size"),
        (f"{AUDIO}.scale_embedding", [True], "False"),
        (f"{VISION}.num_position_embeddings", [0, 143, 2304.0, GONE], "a square number|an integer"),
        (f"{VISION}.deepstack_visual_indexes", [[], [1, 0], [3], [0, 0]], "from 1 to 4 increasing"),
        (f"{VISION}.deepstack_visual_indexes", [None, [-1], ["1"], GONE], "a list of integers"),
        (f"{VISION}.out_hidden_size", [32], "64, the decoder's hidden_size"),
        (f"{VISION}.hidden_act", ["silu", "gelu"], "'gelu_pytorch_tanh'"),
    ],
)
def test_refused(path, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=f"expected .*({expected}).*, got ") as caught:
            ModelConfig.from_dict(edited(CONFIG, path, value))
        assert path.rpartition(".")[0] in str(caught.value)
