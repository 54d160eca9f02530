"""Every entry of config.json that cannot be right is refused by its name."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import pytest

from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.safetensors_index import ConversionError
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.registry import read_config

GONE = object()
COUNTS = [
    "thinker_config.seconds_per_chunk",
    *(
        f"thinker_config.text_config.{name}"
        for name in (
            "vocab_size",
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
    ),
    *(
        f"thinker_config.audio_config.{name}"
        for name in (
            "num_mel_bins",
            "encoder_layers",
            "d_model",
            "encoder_attention_heads",
            "encoder_ffn_dim",
            "n_window",
            "output_dim",
        )
    ),
    *(
        f"thinker_config.vision_config.{name}"
        for name in (
            "depth",
            "hidden_size",
            "num_heads",
            "intermediate_size",
            "in_channels",
            "patch_size",
            "temporal_patch_size",
            "spatial_merge_size",
            "window_size",
            "out_hidden_size",
        )
    ),
]
TOKENS = [
    f"thinker_config.{name}"
    for name in (
        "audio_token_index",
        "video_token_index",
        "audio_start_token_id",
        "audio_end_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    )
]
TEXT, AUDIO, VISION = (f"thinker_config.{name}_config" for name in ("text", "audio", "vision"))
ROPE = f"{TEXT}.rope_scaling"


@pytest.fixture(scope="module")
def released(released_folder):
    return json.loads((released_folder / "config.json").read_text())


def edited(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a configuration in which one entry is another."""
    values = deepcopy(values)
    *parts, name = path.split(".")
    section = values
    for part in parts:
        section = section[part]
    if value is GONE:
        del section[name]
    else:
        section[name] = value
    return values


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "64", None, [], 10**12, GONE])
@pytest.mark.parametrize("path", COUNTS)
def test_counts(released, path, value):
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_dict(edited(released, path, value))
    got = "nothing" if value is GONE else repr(value)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected an integer from 1") and message.endswith(got)


@pytest.mark.parametrize("value", [-1, 512, 463.0, True, "463", None, GONE])
@pytest.mark.parametrize("path", TOKENS)
def test_token_ids(released, path, value):
    with pytest.raises(ValueError, match=f"^{path}: expected an integer from 0 to 511, got"):
        ModelConfig.from_dict(edited(released, path, value))


def test_two_markers_with_one_id(released):
    token = released["thinker_config"]["audio_token_index"]
    with pytest.raises(ValueError, match="video_token_index: expected an id that no other"):
        ModelConfig.from_dict(edited(released, "thinker_config.video_token_index", token))


@pytest.mark.parametrize(
    ("path", "values", "expected"),
    [
        ("thinker_config.position_id_per_seconds", [0, "25", None, 24, 25.5], "25|an integer"),
        ("thinker_config.seconds_per_chunk", [1, 3], "a block is one chunk"),
        ("thinker_config.tie_word_embeddings", ["false", 0, None], "true or false"),
        ("thinker_config", [None, [], "thinker"], "a mapping"),
        (TEXT, [None, [], GONE], "a mapping"),
        (AUDIO, [None, 5, GONE], "a mapping"),
        (VISION, [None, "vision", GONE], "a mapping"),
        (f"{TEXT}.hidden_size", [63, 66], "divides hidden_size"),
        (f"{TEXT}.num_attention_heads", [3, 5, 64], "divides hidden_size = 64 into multiples of 2"),
        (f"{TEXT}.num_key_value_heads", [3, 8], "a divisor of num_attention_heads = 4"),
        (f"{TEXT}.rms_norm_eps", [-1e-6, 0, math.nan, math.inf, "1e-6", None], "positive number"),
        (f"{TEXT}.rope_theta", [-1, 0, math.nan, "1e6", False], "positive number"),
        (f"{TEXT}.hidden_act", ["gelu", None, 3], "'silu'"),
        (f"{TEXT}.use_sliding_window", [True, "no"], "False"),
        (f"{TEXT}.layer_types", [["sliding_attention"] * 4, []], "full_attention"),
        (f"{TEXT}.head_dim", [32], "16"),
        (ROPE, [None, [], GONE], "a mapping"),
        (f"{ROPE}.mrope_section", [[2, 3], [2, 3, 4], [8], [2, 3, 3, 0]], "with the sum 8"),
        (f"{ROPE}.mrope_section", [None, 8, [9, 0, -1], ["2", 3, 3], GONE], "a list of integers"),
        (f"{ROPE}.rope_type", ["yarn", "linear", None], "'default' or 'mrope'"),
        (f"{ROPE}.type", ["yarn"], "'default' or 'mrope'"),
        (f"{AUDIO}.d_model", [33, 30], "divides d_model|an even number"),
        (f"{AUDIO}.encoder_attention_heads", [3, 64], "divides d_model = 32"),
        (f"{AUDIO}.n_window", [50, 99], "100, so that a block is one chunk of 2 s"),
        (f"{AUDIO}.output_dim", [32], "64, the decoder's hidden_size"),
        (f"{AUDIO}.activation_function", ["relu", None], "'gelu'"),
        (f"{VISION}.hidden_size", [33, 36], "divides hidden_size"),
        (f"{VISION}.num_heads", [3, 16], "divides hidden_size = 32 into multiples of 4"),
        (f"{VISION}.in_channels", [1, 4], "3: red, green, blue"),
        (f"{VISION}.window_size", [27], "at least patch_size \\* spatial_merge_size = 28"),
        (f"{VISION}.fullatt_block_indexes", [None, 3, [-1], ["1"], [1.0], GONE], "a list of"),
        (f"{VISION}.out_hidden_size", [32], "64, the decoder's hidden_size"),
        (f"{VISION}.hidden_act", ["quick_gelu"], "'silu'"),
    ],
)
def test_other_entries(released, path, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=expected) as caught:
            ModelConfig.from_dict(edited(released, path, value))
        assert path.rpartition(".")[0] in str(caught.value)
        assert "expected" in str(caught.value) and ", got " in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{TEXT}.hidden_act", GONE),
        (f"{TEXT}.layer_types", ["full_attention"] * 4),
        (f"{TEXT}.sliding_window", 32768),
        (f"{TEXT}.head_dim", 16),
        (f"{TEXT}.rms_norm_eps", 1),
        (f"{ROPE}.rope_type", "mrope"),
        (f"{VISION}.fullatt_block_indexes", [7, 15, 23, 31]),
        ("thinker_config.tie_word_embeddings", GONE),
        ("talker_config", None),
    ],
)
def test_optional_and_ignored_entries(released, path, value):
    ModelConfig.from_dict(edited(released, path, value))


@pytest.mark.parametrize(
    "content", [b"\xff\xfe{", b"[" * 100_000, b"9" * 10_000, b"{}", b"null", b'"text"', b""]
)
def test_not_a_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: not a"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["llama", None, GONE, ["qwen2_5_omni"]])
def test_no_supported_family(tmp_path, released, name):
    values = edited(released, "model_type", name)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"model_type: expected .*qwen2_5_omni.*_thinker.*, got"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [("thinker_config.position_id_per_seconds", 0), (f"{TEXT}.num_attention_heads", 3)],
)
def test_conversion_and_loading_alike(source, copy, released, tmp_path, path, value):
    for folder in (source, copy):
        (folder / "config.json").write_text(json.dumps(edited(released, path, value)))
    with pytest.raises(ValueError, match=f"config.json: not a valid[^$]*{path}: expected"):
        load(copy)
    with pytest.raises(ConversionError, match=f"config.json: not a valid[^$]*{path}: expected"):
        convert(source, tmp_path / "again")


# --- the tokenizer and the configuration


slow = pytest.mark.slow

TEMPLATES = {
    "": "no chat template",
    "{{ messages[0].role": "broken chat template",
    "{{ messages.nothing.at_all }}": "broken chat template",
    "{{ 1 / 0 }}": "broken chat template",
    "{{ raise_exception('no') }}": "broken chat template",
    "Hello.": "broken chat template: 'Be brief.' of the messages",
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}": (
        "the chat template and config.json disagree"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_chat_templates(source, copy, tmp_path, template):
    for file in (source / "chat_template.jinja", copy / "tokenizer" / "chat_template.jinja"):
        file.write_text(template)
    with pytest.raises(ConversionError, match=TEMPLATES[template]) as caught:
        convert(source, tmp_path / "again")
    assert str(source) in str(caught.value)
    with pytest.raises(ValueError, match=TEMPLATES[template]) as caught:
        load(copy)
    assert str(copy) in str(caught.value)
    assert not (tmp_path / "again").exists()


def test_markers_that_are_others_in_the_tokenizer(source, released, tmp_path):
    (source / "config.json").write_text(json.dumps(edited(released, TOKENS[0], 7)))
    with pytest.raises(ConversionError, match=r"disagree: expected the tokens .* audio"):
        convert(source, tmp_path / "model")


def test_a_vocabulary_too_small_for_the_tokenizer(source, tmp_path):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    word = max(tokenizer["model"]["vocab"], key=len)
    tokenizer["model"]["vocab"][word] = 600
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConversionError, match=r"ids up to 600, .* a vocab_size of 512"):
        convert(source, tmp_path / "model")


@pytest.mark.parametrize(
    "content", [b"{", *(pytest.param(c, marks=slow) for c in (b"\xff", b"{}", b"[]", b"null"))]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer(source, tmp_path, name, content):
    (source / name).write_bytes(content)
    try:
        convert(source, tmp_path / "model")
    except ConversionError as error:
        assert str(source) in str(error)
    else:  # without settings, a tokenizer may still be whole
        assert name == "tokenizer_config.json"
        load(tmp_path / "model")
