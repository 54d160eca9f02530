"""The real 3B and 7B models, by abstract evaluation: names, shapes and counts as released."""

from __future__ import annotations

import collections
import math
from copy import deepcopy

import pytest

from omnizip_jax.models import qwen3_omni
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.weight_mapping import abstract, array_infos, released_shapes
from omnizip_jax.testbed import random_checkpoint

AUDIO = {
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "n_window": 100,
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
TEXT = {
    "rope_theta": 1e6,
    "rope_scaling": {"mrope_section": [16, 24, 24]},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
}
TEXT_3B = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
}
TEXT_7B = {
    "vocab_size": 152064,
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
}
TOKENS = {
    "audio_token_index": 151646,
    "video_token_index": 151656,
    "audio_start_token_id": 151647,
    "audio_end_token_id": 151648,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
}

# Parameters as counted in the released files.
PARAMETERS = {
    "3b": {
        "audio_tower": 637_676_544,
        "visual": 668_684_288,
        "model": 3_085_938_688,
        "lm_head": 311_164_928,
    },
    "7b": {
        "audio_tower": 639_647_232,
        "visual": 676_550_144,
        "model": 7_070_619_136,
        "lm_head": 544_997_376,
    },
}
# The released audio encoder also counts an embedding of two tokens that nothing uses.
UNUSED = {"3b": 2 * 2048, "7b": 2 * 3584}


def config(size: str) -> ModelConfig:
    text = {"3b": TEXT_3B, "7b": TEXT_7B}[size]
    thinker = {
        "audio_config": AUDIO | {"output_dim": text["hidden_size"]},
        "vision_config": VISION | {"out_hidden_size": text["hidden_size"]},
        "text_config": TEXT | text,
        **TOKENS,
    }
    return ModelConfig.from_dict({"thinker_config": thinker})


def part(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_parameters(size):
    counts = dict.fromkeys(PARAMETERS[size], 0)
    for name, shape in released_shapes(parameter_tree(config(size))).items():
        counts[part(name)] += math.prod(shape)
    counts["audio_tower"] += UNUSED[size]
    assert counts == PARAMETERS[size]


@pytest.mark.parametrize(("size", "total"), [("3b", 4_703_464_448), ("7b", 8_931_813_888)])
def test_our_tree_holds_the_same_values(size, total):
    leaves = array_infos(parameter_tree(config(size)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) + UNUSED[size] == total
    for leaf in leaves:
        assert math.prod(leaf.shape) == len(leaf.names) * math.prod(leaf.released_shape)


def test_7b_tensors_and_bytes():
    shapes = released_shapes(parameter_tree(config("7b")))
    counts = dict.fromkeys(PARAMETERS["7b"], 0)
    for name in shapes:
        counts[part(name)] += 1
    # 489 audio tensors are released, one of them unused.
    assert counts == {"audio_tower": 488, "visual": 518, "model": 338, "lm_head": 1}
    assert len(shapes) + 1 == 1346
    stored = sum(2 * math.prod(shape) for shape in shapes.values())
    assert stored + 2 * UNUSED["7b"] == 17_863_627_776


@pytest.mark.slow
@pytest.mark.parametrize("size", ["3b", "7b"])
def test_names_and_shapes_equal_those_of_transformers(size):
    """The same model in transformers, on the meta device, saved by its own renaming."""
    import torch
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    ours = config(size)
    text = {"3b": TEXT_3B, "7b": TEXT_7B}[size]
    theirs = Qwen2_5OmniThinkerConfig(
        audio_config=AUDIO | {"output_dim": ours.audio.output},
        vision_config=VISION | {"out_hidden_size": ours.vision.output},
        text_config=TEXT | text,
        **TOKENS,
    )
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(theirs)
    renamed = {
        "model.audio_tower": "thinker.audio_tower",
        "model.visual": "thinker.visual",
        "model.language_model": "thinker.model",
        "lm_head": "thinker.lm_head",
    }
    expected = {}
    for name, tensor in model.state_dict().items():
        prefix = next(prefix for prefix in renamed if name.startswith(f"{prefix}."))
        expected[renamed[prefix] + name.removeprefix(prefix)] = tuple(tensor.shape)
    unused = expected.pop("thinker.audio_tower.audio_bos_eos_token.weight")
    assert math.prod(unused) == UNUSED[size]
    assert released_shapes(parameter_tree(ours)) == expected


def test_dtype_of_the_abstract_tree():
    import jax

    leaves = jax.tree.leaves(abstract(parameter_tree(config("3b"), "bfloat16")))
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def qwen3() -> qwen3_omni.ModelConfig:
    """Qwen3-Omni-30B-A3B."""
    values = deepcopy(random_checkpoint.CONFIG)
    sizes = values["thinker_config"]
    sizes["audio_config"] |= {
        "encoder_layers": 32,
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "output_dim": 2048,
        "downsample_hidden_size": 480,
    }
    sizes["vision_config"] |= {
        "depth": 27,
        "hidden_size": 1152,
        "num_heads": 16,
        "intermediate_size": 4304,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    sizes["text_config"] |= {
        "vocab_size": 152064,
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "rope_scaling": {"mrope_section": [24, 20, 20]},
    }
    return qwen3_omni.ModelConfig.from_dict(values)


def test_names_and_parameters_of_qwen3():
    """Counts of the released thinker, and the shapes of a tensor of each kind that is new."""
    shapes = released_shapes(qwen3_omni.parameter_tree(qwen3()))
    assert sum(map(math.prod, shapes.values())) == 31_719_205_488
    counts = collections.Counter(map(part, shapes))
    assert counts == {"audio_tower": 525, "visual": 351, "model": 18_866, "lm_head": 1}
    expected = {
        "audio_tower.conv2d1.weight": (480, 1, 3, 3),
        "audio_tower.conv_out.weight": (1280, 7680),
        "audio_tower.layers.31.self_attn.k_proj.bias": (1280,),
        "visual.patch_embed.proj.weight": (1152, 3, 2, 16, 16),
        "visual.pos_embed.weight": (2304, 1152),
        "visual.blocks.26.attn.qkv.weight": (3456, 1152),
        "visual.merger.ln_q.weight": (1152,),
        "visual.merger_list.2.ln_q.bias": (4608,),
        "visual.merger_list.2.mlp.2.weight": (2048, 4608),
        "model.layers.47.self_attn.q_norm.weight": (128,),
        "model.layers.47.mlp.gate.weight": (128, 2048),
        "model.layers.47.mlp.experts.127.down_proj.weight": (2048, 768),
    }
    assert {name: shapes[f"thinker.{name}"] for name in expected} == expected
