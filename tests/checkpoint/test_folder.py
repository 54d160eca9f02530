"""Loading a converted checkpoint, and the random checkpoints in the released layout."""

from __future__ import annotations

import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from benchmarks.random_checkpoint import SPECIAL_TOKENS, write_random_checkpoint
from omnizip_jax.checkpoint import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.models.qwen2_5_omni.weight_mapping import parameter_tree
from omnizip_jax.models.registry import read_config
from omnizip_jax.models.weight_mapping import abstract

# --- load


def test_weights_are_those_of_the_modules(converted):
    params = load(converted)
    expected = abstract(parameter_tree(params.config, "bfloat16"))
    assert jax.tree.structure(params.weights) == jax.tree.structure(expected)
    for ours, wanted in zip(
        jax.tree.leaves(params.weights), jax.tree.leaves(expected), strict=True
    ):
        assert isinstance(ours, jax.Array)
        assert ours.devices() == {jax.devices()[0]}
        assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)


def test_dtype_by_choice(converted):
    stored, wide = load(converted), load(converted, dtype="float32")
    for narrow, leaf in zip(jax.tree.leaves(stored), jax.tree.leaves(wide), strict=True):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, narrow.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype("float32"), np.float32])
def test_dtypes_are_types_too(converted, dtype):
    leaves = jax.tree.leaves(load(converted, dtype).weights)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}


def test_home_in_the_path(converted, monkeypatch):
    monkeypatch.setenv("HOME", str(converted.parent))
    assert load(f"~/{converted.name}").fingerprint == load(converted).fingerprint


def test_a_warning_is_no_damage(converted, monkeypatch):
    def warn(*_, **__):
        raise DeprecationWarning("use something else")

    reader = types.SimpleNamespace(open=warn)
    monkeypatch.setattr(sys.modules[load.__module__], "tensorstore", reader)
    with pytest.raises(DeprecationWarning, match="use something else"):
        load(converted)


def test_configuration_and_tokenizer_ride_along(converted, released_folder):
    params = load(str(converted))
    assert params.config == read_config(released_folder / "config.json")
    assert params.tokenizer.convert_tokens_to_ids("<|VIDEO|>") == params.config.video_token
    assert params.tokenizer.chat_template

    @jax.jit
    def scale(params: Params) -> jax.Array:
        assert isinstance(params.config.text.hidden, int)
        return params.weights["text"]["norm"]["scale"] * 2

    assert scale(params).shape == (params.config.text.hidden,)


def test_folder_is_self_contained(converted, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(converted, moved)
    params = load(moved)
    assert params.tokenizer.decode(params.tokenizer("hello").input_ids) == "hello"


def test_template_beside_the_tokenizer(source, tmp_path):
    """Older releases name the class Qwen2Tokenizer and keep the template in a JSON file."""
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2_5OmniProcessor"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    template = source / "chat_template.jinja"
    text = template.read_text()
    (source / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    template.unlink()
    convert.convert(source, tmp_path / "model")
    assert load(tmp_path / "model").tokenizer.chat_template == text


def test_not_a_checkpoint(tmp_path, released_folder):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(ValueError, match="omnizip convert SOURCE TARGET") as caught:
            load(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=f"omnizip convert {released_folder} TARGET"):
        load(released_folder)


def test_interrupted_conversion(copy):
    (copy / "CONVERSION_UNFINISHED").write_text("")
    with pytest.raises(ValueError, match="interrupted conversion"):
        load(copy)


def test_configuration_of_another_size(copy):
    config = json.loads((copy / "config.json").read_text())
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit config.json") as caught:
        load(copy)
    wrong = "text/layers/mlp/up_proj/weight"
    assert f"{wrong}: expected (3, 128, 64), found (4, 128, 64)" in str(caught.value)


def test_weights_lost(copy):
    for file in (copy / "weights").iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(ValueError, match=r"damaged weights; write one with `omnizip convert"):
        load(copy)


def test_weights_truncated(copy):
    data = max((copy / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged weights; write one with `omnizip convert"):
        load(copy)


# --- random checkpoints in the released layout


@pytest.mark.slow
def test_transformers_loads_every_tensor(released_folder):
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    model, report = Thinker.from_pretrained(
        released_folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    embedding = model.get_input_embeddings().weight.detach().numpy()
    name = "thinker.model.embed_tokens.weight"
    shards = [load_file(file) for file in released_folder.glob("*.safetensors")]
    (stored,) = [shard[name] for shard in shards if name in shard]
    np.testing.assert_array_equal(embedding, stored.astype(np.float32))


def test_same_seed_same_files(released_folder, tmp_path):
    again = write_random_checkpoint(tmp_path / "again")
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    for file in released_folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    shard = "model-00001-of-00002.safetensors"
    assert (again / shard).read_bytes() != (other / shard).read_bytes()


def test_index_names_every_tensor(released_folder):
    index = json.loads((released_folder / "model.safetensors.index.json").read_text())
    files = sorted(released_folder.glob("*.safetensors"))
    assert len(files) == 2
    found = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == found


def test_tokens_agree_with_the_configuration(released_folder):
    tokenizer = AutoTokenizer.from_pretrained(released_folder)
    config = read_config(released_folder / "config.json")
    ids = [tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS]
    assert len(set(ids)) == len(ids)
    assert max(ids) < config.text.vocabulary
    assert [tokenizer(name).input_ids for name in SPECIAL_TOKENS] == [[token] for token in ids]
    names = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|vision_bos|>", "<|vision_eos|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [
        config.audio_token,
        config.audio_start_token,
        config.audio_end_token,
        config.vision_start_token,
        config.vision_end_token,
    ]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("text", ["What is said?", "naïve → 日本語 🎧", " \n  tabs\tand 'quotes'"])
def test_tokenizer_encodes_any_text(released_folder, text):
    tokenizer = AutoTokenizer.from_pretrained(released_folder)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_chat_template_renders_as_the_released_one(released_folder):
    tokenizer = AutoTokenizer.from_pretrained(released_folder)

    def render(*messages, **options):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)

    parts = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What is said?"}]
    assert render({"role": "user", "content": parts}, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|>What is said?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    audio = {"role": "user", "content": [{"type": "audio"}, {"type": "image"}]}
    answer = {"role": "assistant", "content": "Yes."}
    assert render(system, audio, answer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>"
        "<|vision_bos|><|IMAGE|><|vision_eos|><|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )


def test_unknown_size(tmp_path):
    with pytest.raises(ValueError, match="tiny, small, 3b"):
        write_random_checkpoint(tmp_path, size="huge")


# --- folders that are something else

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
ELSE = {
    "a GGUF file": ({"q4.gguf": "GGUF"}, "q4.gguf", "GGUF files are quantised"),
    "a folder of GGUF": ({"m/q4.gguf": "GGUF", "m/config.json": "{}"}, "m", "GGUF files are"),
    "LoRA": (
        {"m/adapter_config.json": "{}", "m/adapter_model.safetensors": ""},
        "m",
        "a LoRA adapter without the model",
    ),
    "GPTQ": (
        {"m/config.json": {"quantization_config": {"quant_method": "gptq"}}},
        "m",
        r"\(gptq\)",
    ),
    "bitsandbytes": (
        {"m/config.json": {"thinker_config": {"quantization_config": {"quant_method": "bnb"}}}},
        "m",
        r"quantised weights \(bnb\)",
    ),
    "AutoGPTQ": ({"m/config.json": "{}", "m/quantize_config.json": "{}"}, "m", "of an unknown"),
    "a pointer": ({"m/config.json": POINTER}, "m", "LFS pointers in place of config.json; run"),
    "pointers": (
        {"m/config.json": "{}", "m/tokenizer.json": POINTER, "m/merges.txt": POINTER},
        "m",
        "in place of merges.txt, tokenizer.json; run",
    ),
    "a repository of the cache": (
        {"models--Q--M/snapshots/1a/config.json": "{}"},
        "models--Q--M",
        "a cache of the Hugging Face Hub; give a snapshot in it: .*models--Q--M/snapshots/1a$",
    ),
    "the whole cache": ({"h/hub/models--Q--M/snapshots/1a/config.json": "{}"}, "h", "a cache of"),
    "pickles": ({"m/config.json": "{}", "m/pytorch_model.bin": ""}, "m", "PyTorch pickles"),
}


@pytest.mark.parametrize("name", ELSE)
def test_what_a_path_is_instead(tmp_path, name):
    files, path, message = ELSE[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / file).write_text(text)
    for use in (load, lambda path: convert.convert(path, tmp_path / "out")):
        with pytest.raises(ValueError, match=message) as caught:
            use(tmp_path / path)
        assert str(caught.value).count("\n") == 0


def test_a_name_on_the_hub():
    with pytest.raises(ValueError, match=r"hf download Qwen/Qwen2\.5-Omni-3B --local-dir"):
        load("Qwen/Qwen2.5-Omni-3B")


def test_a_converted_folder_is_not_converted_again(converted, tmp_path):
    with pytest.raises(ValueError, match="converted already; load it"):
        convert.convert(converted, tmp_path / "out")


def test_another_model(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match=r"model_type: expected .* got 'qwen2_vl'"):
        convert.convert(source, tmp_path / "out")


# --- stop tokens


def test_stop_tokens_are_those_of_the_generation_config(copy):
    tokens = load(copy).tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    cases = (({"eos_token_id": 7}, (7,)), ({"eos_token_id": [7, 9]}, (7, 9)), ({}, tuple(tokens)))
    for content, expected in cases:
        (copy / "generation_config.json").write_text(json.dumps(content))
        assert load(copy).end_tokens == expected
    (copy / "generation_config.json").unlink()
    assert load(copy).end_tokens == tuple(tokens)


@pytest.mark.parametrize("content", ["[", "7", '{"eos_token_id": "7"}', '{"eos_token_id": [512]}'])
def test_a_damaged_generation_config(copy, source, tmp_path, content):
    for folder in (copy, source):
        (folder / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"generation_config\.json: "):
        load(copy)
    with pytest.raises(ValueError, match=r"generation_config\.json: "):
        convert.convert(source, tmp_path / "out")
