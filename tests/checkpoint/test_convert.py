"""Conversion: the right numbers in the right places, and every way it can go wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from omnizip_jax.checkpoint import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.safetensors_index import listing
from omnizip_jax.cli.main import main

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def fails(tmp_path, capfd):
    """Convert a bad source; the message. Leaves nothing behind and the source as it was."""

    def run(source: Path, target: Path | None = None) -> str:
        before = fingerprint(source)
        target = target or tmp_path / "out" / "model"
        existed = target.exists()
        assert main(["convert", str(source), str(target)]) == 1
        assert fingerprint(source) == before
        assert target.exists() == existed
        assert not target.with_name("model.unfinished").exists()
        message = capfd.readouterr().err
        assert "omnizip: " in message and "Traceback" not in message
        return message

    return run


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def released(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }


def edit_shard(folder: Path, change) -> None:
    """Rewrite the first shard after ``change`` has edited its tensors."""
    file = min(folder.glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# --- the numbers


def test_every_layout_rule(released_folder, converted):
    weights, raw = load(converted, "float32").weights, released(released_folder)

    def same(ours, name, transform=lambda x: x):
        np.testing.assert_array_equal(ours, transform(raw[f"thinker.{name}"].astype(np.float32)))

    audio, vision, text = weights["audio"], weights["vision"], weights["text"]
    same(audio["conv1"]["kernel"], "audio_tower.conv1.weight", lambda x: x.transpose(2, 1, 0))
    same(audio["ln_post"]["scale"], "audio_tower.ln_post.weight")
    same(audio["layers"]["fc2"]["weight"][1], "audio_tower.layers.1.fc2.weight")
    same(audio["layers"]["fc2"]["bias"][0], "audio_tower.layers.0.fc2.bias")
    assert "bias" not in audio["layers"]["self_attn"]["k_proj"]
    same(
        vision["patch_embed"]["proj"]["weight"],
        "visual.patch_embed.proj.weight",
        lambda x: x.reshape(x.shape[0], -1),
    )
    same(vision["merger"]["mlp_2"]["weight"], "visual.merger.mlp.2.weight")
    same(vision["blocks"]["norm2"]["scale"][3], "visual.blocks.3.norm2.weight")
    same(text["embed_tokens"]["embedding"], "model.embed_tokens.weight")
    same(text["lm_head"]["weight"], "lm_head.weight")
    same(
        text["layers"]["self_attn"]["k_proj"]["weight"][2],
        "model.layers.2.self_attn.k_proj.weight",
    )
    same(text["norm"]["scale"], "model.norm.weight")


@pytest.mark.slow
def test_all_weights_equal_those_of_transformers(converted, thinker):
    ours, theirs = load(converted, "float32").weights, thinker.weights()
    theirs["audio"].pop("audio_bos_eos_token", None)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_dtype_of_the_conversion(released_folder, converted, tmp_path, dtype):
    main(["convert", str(released_folder), str(tmp_path / "model"), "--dtype", dtype])
    leaves = jax.tree.leaves(load(tmp_path / "model").weights)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}
    stored = jax.tree.leaves(load(converted).weights)
    assert {leaf.dtype for leaf in stored} == {np.dtype("bfloat16")}
    for ours, reference in zip(leaves, stored, strict=True):
        np.testing.assert_array_equal(ours.astype("float32"), reference.astype("float32"))


@pytest.mark.parametrize("stored", ["float16", "mixed"])
def test_float16_and_mixed_types_become_float32(source, tmp_path, stored):
    """One dtype in which every device computes, and which holds the released values exactly."""
    name = "thinker.audio_tower.layers.0.fc1.bias"
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        if stored == "float16":
            tensors = {key: x.astype(np.float16) for key, x in tensors.items()}
        elif name in tensors:
            tensors[name] = tensors[name].astype(np.float32) / 3
        save_file(tensors, file)
    assert "in float32" in convert.convert(source, tmp_path / "model")
    weights = load(tmp_path / "model").weights
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype(np.float32)}
    bias = weights["audio"]["layers"]["fc1"]["bias"]
    np.testing.assert_array_equal(bias[0], released(source)[name].astype(np.float32))


def test_quantised_tensors_are_one_sentence(source, fails):
    name = "thinker.model.layers.0.mlp.up_proj"
    edit_shard(source, lambda tensors: tensors.update({f"{name}.qweight": np.zeros(3, np.int32)}))
    message = fails(source)
    assert f"the tensors are quantised ({name}.qweight)" in message
    assert "missing" not in message


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["thinker.", ""])
def test_a_save_of_the_thinker_alone(released_folder, converted, thinker, tmp_path, prefix):
    source = tmp_path / "thinker"
    thinker.model.save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(released_folder / name, source)
    tensors = load_file(source / "model.safetensors")  # a single file, and the thinker's own config
    renamed = {prefix + name.removeprefix("thinker."): array for name, array in tensors.items()}
    save_file(renamed, source / "model.safetensors")
    convert.convert(source, tmp_path / "model")
    found, expected = load(tmp_path / "model"), load(converted)
    # transformers does not save this library's own entry, so the windows are those of the release.
    assert found.config == dataclasses.replace(expected.config, grid_slots=144)
    jax.tree.map(np.testing.assert_array_equal, found.weights, expected.weights)


def test_tied_embeddings_need_no_head(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    config["thinker_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop("thinker.lm_head.weight", None)
        save_file(tensors, file)
    convert.convert(source, tmp_path / "model")
    assert "lm_head" not in load(tmp_path / "model").weights["text"]


@pytest.mark.slow  # compares with transformers
@pytest.mark.parametrize("stored", ["both, different", "both, equal", "the head", "the embedding"])
def test_tied_checkpoints_are_read_as_transformers_reads_them(source, tmp_path, stored):
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    embedding, head = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"
    config = json.loads((source / "config.json").read_text())
    config["thinker_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    values = released(source)
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        if stored == "both, equal" and head in tensors:
            tensors[head] = values[embedding]
        if stored == "the head":
            tensors.pop(embedding, None)
        if stored == "the embedding":
            tensors.pop(head, None)
        save_file(tensors, file, metadata={"format": "pt"})

    theirs = Thinker.from_pretrained(source, dtype=torch.float32)
    convert.convert(source, tmp_path / "model")
    params = load(tmp_path / "model", "float32")
    text = params.weights["text"]
    assert params.config.text.tied == ("lm_head" not in text) == (stored != "both, different")
    table = text["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(table, theirs.get_input_embeddings().weight.detach())
    logits = table if params.config.text.tied else text["lm_head"]["weight"]
    np.testing.assert_array_equal(logits, theirs.lm_head.weight.detach())


def test_a_tied_checkpoint_with_an_unfit_head(source, fails):
    config = json.loads((source / "config.json").read_text())
    config["thinker_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        if "thinker.lm_head.weight" in tensors:
            tensors["thinker.lm_head.weight"] = np.zeros((0, 64), np.float32)
            save_file(tensors, file)
    assert "misshapen thinker.lm_head.weight: expected [512, 64], found [0, 64]" in fails(source)


def test_batches_and_slices_of_any_size(released_folder, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "BATCH_BYTES", 2**17)
    monkeypatch.setattr("omnizip_jax.checkpoint.safetensors_index.SLICE_BYTES", 10_000)
    convert.convert(released_folder, tmp_path / "model")
    one, many = load(converted), load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, one.weights, many.weights)
    assert one.fingerprint == many.fingerprint
    assert len(one.fingerprint) == 16 and int(one.fingerprint, 16)


def test_a_single_file_of_the_thinker_without_its_prefix(source, converted, tmp_path):
    tensors = released(source)
    for file in source.glob("*.safetensors*"):
        file.unlink()
    names = [name for name in tensors if name.startswith("thinker.")]
    renamed = {name.removeprefix("thinker."): tensors[name] for name in names}
    save_file(renamed, source / "model.safetensors")
    convert.convert(source, tmp_path / "model")
    assert load(tmp_path / "model").fingerprint == load(converted).fingerprint


def test_the_report_lists_what_is_left_out(released_folder, tmp_path, capfd):
    before = fingerprint(released_folder)
    assert main(["convert", str(released_folder), str(tmp_path / "model")]) == 0
    assert fingerprint(released_folder) == before
    out, err = capfd.readouterr()
    assert "left out: talker (3 tensors)" in out
    assert "left out: token2wav (2 tensors)" in out
    assert "left out: thinker.audio_tower.audio_bos_eos_token.weight (1 tensor)" in out
    assert "159 tensors" in out
    assert "100%" in err  # the progress bar


# --- what can be wrong with the source


def test_bad_tensors_are_listed_all_at_once(source, fails):
    def spoil(tensors):
        del tensors["thinker.audio_tower.layers.1.fc1.weight"]
        del tensors["thinker.audio_tower.conv1.bias"]
        tensors["thinker.audio_tower.layers.0.fc1.bias"] = np.zeros((7,), np.float32)
        tensors["thinker.audio_tower.ln_post.bias"] = np.zeros((32,), np.int32)
        tensors["thinker.visual.extra.weight"] = np.zeros((2, 3), np.float32)
        tensors["thinker.visual.rotary_pos_emb.inv_freq"] = np.zeros((4,), np.float32)

    edit_shard(source, spoil)
    message = fails(source)
    assert "(5)" in message
    assert "missing   thinker.audio_tower.layers.1.fc1.weight: expected shape [64, 32]" in message
    assert "missing   thinker.audio_tower.conv1.bias: expected shape [32]" in message
    assert "misshapen thinker.audio_tower.layers.0.fc1.bias: expected [64], found [7]" in message
    assert (
        "mistyped  thinker.audio_tower.ln_post.bias: expected BF16, F16, F32, found I32" in message
    )
    assert "surplus   thinker.visual.extra.weight: found shape [2, 3]" in message
    assert "inv_freq" not in message


def test_many_problems_of_a_kind_are_counted():
    problems = [f"missing {i}" for i in range(18_432)]
    lines = listing("the tensors do not fit", problems, ["surplus 0"]).splitlines()
    assert lines[0] == "the tensors do not fit (18433):" and lines[1] == "  missing 0"
    assert lines[-2:] == ["  and 18,408 more", "  surplus 0"] and len(lines) == 27


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated_shard(source, fails, keep):
    file = max(source.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:keep])
    message = fails(source)
    assert file.name in message and "not fully downloaded" in message


def test_missing_shard(source, fails):
    file = max(source.glob("*.safetensors"))
    file.unlink()
    assert f"{file.name}: named in the index, but missing" in fails(source)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_index(source, fails, content):
    (source / "model.safetensors.index.json").write_text(content)
    assert "damaged index" in fails(source)


@pytest.mark.parametrize("name", ["../secret", 5, None, ["a"], ""])
def test_index_with_strange_files(source, fails, name):
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "damaged index" in fails(source) or name == ""


def test_a_tensor_stored_twice(source, fails):
    shards = sorted(source.glob("*.safetensors"))
    name = "thinker.audio_tower.ln_post.bias"
    tensors = load_file(shards[1])
    tensors[name] = load_file(shards[0])[name] + 1
    save_file(tensors, shards[1])
    assert f"{shards[1].name}: has {name} a second time" in fails(source)


def test_no_weights(source, fails):
    for file in source.glob("*.safetensors*"):
        file.unlink()
    assert "no weights here" in fails(source)


def test_not_a_folder(tmp_path, fails):
    assert "not a folder" in fails(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a folder" in fails(tmp_path / "notes.txt")


def test_wrong_folder(tmp_path, fails):
    (tmp_path / "photos").mkdir()
    assert "no config.json" in fails(tmp_path / "photos")


@pytest.mark.parametrize("content", ["hello", '{"model_type": "llama", "hidden_size": 64}'])
def test_wrong_config(source, fails, content):
    (source / "config.json").write_text(content)
    assert "config.json" in fails(source)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_no_tokenizer(source, fails, name):
    (source / name).unlink()
    message = fails(source)
    assert "tokenizer" in message and str(source) in message


# --- what can be wrong with the target


def test_target_exists(released_folder, tmp_path, fails):
    target = tmp_path / "model"
    target.mkdir()
    (target / "precious").write_text("do not lose")
    assert "exists already" in fails(released_folder, target)
    assert (target / "precious").read_text() == "do not lose"


def test_target_inside_the_source(source, fails):
    assert "inside the source" in fails(source, source / "model")


def test_something_else_in_the_way(released_folder, tmp_path, capfd):
    work = tmp_path / "model.unfinished"
    work.mkdir()
    (work / "precious").write_text("do not lose")
    assert main(["convert", str(released_folder), str(tmp_path / "model")]) == 1
    assert "in the way" in capfd.readouterr().err
    assert (work / "precious").exists()


def test_disk_full_before(released_folder, fails, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert "disk full" in fails(released_folder)


def test_disk_fills_meanwhile(released_folder, fails, monkeypatch):
    free = iter([2**30, 2**30, 2**20])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    assert "disk full" in fails(released_folder)


def test_a_write_fails(released_folder, fails, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert.ocp.partial, "save", full)
    assert "No space left on device" in fails(released_folder)


def test_a_write_fails_inside_tensorstore(released_folder, fails, monkeypatch):
    def denied(*_):
        raise ValueError("PERMISSION_DENIED: Error writing [os_error_code='13']")

    monkeypatch.setattr(convert.ocp.partial, "save", denied)
    message = fails(released_folder)
    assert "writing failed: PERMISSION_DENIED" in message and "full" not in message


def test_a_bug_is_no_full_disk(released_folder, tmp_path, monkeypatch):
    def bug(*_):
        raise TypeError("save() takes 3 positional arguments")

    monkeypatch.setattr(convert.ocp.partial, "save", bug)
    with pytest.raises(TypeError, match="positional"):
        convert.convert(released_folder, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["int16", "float64", "float16", "hello", object()])
def test_no_dtype_for_weights(released_folder, converted, tmp_path, dtype):
    for use in (lambda: load(converted, dtype), lambda: load("small", dtype)):
        with pytest.raises(ValueError, match="dtype of the weights must be one of bfloat16, fl"):
            use()
    with pytest.raises(ValueError, match="dtype of the weights must be one of bfloat16, fl"):
        convert.convert(released_folder, tmp_path / "model", dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_warnings_as_errors(released_folder, tmp_path):
    """No warning comes up on the way, so none can pass for damage."""
    script = (
        "import sys; from omnizip_jax.checkpoint.convert import convert\n"
        "from omnizip_jax.checkpoint.load import load\n"
        "convert(*sys.argv[1:]); load(sys.argv[2], 'float32', verify=True)"
    )
    command = ["-W", "error", "-c", script, str(released_folder), str(tmp_path / "model")]
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)


def test_interrupted_by_the_keyboard(released_folder, tmp_path, monkeypatch, capfd):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.ocp.partial, "save", stop)
    assert main(["convert", str(released_folder), str(tmp_path / "model")]) == 130
    assert "omnizip: stopped" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


KILLED_IN_THE_SECOND_BATCH = """
import os, signal, sys
from omnizip_jax.checkpoint import convert
from omnizip_jax.cli.main import main
save, calls = convert.ocp.partial.save, []
def die(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments)
convert.ocp.partial.save = die
main(["convert", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_killed_then_run_again(released_folder, converted, tmp_path):
    target, work = tmp_path / "model", tmp_path / "model.unfinished"
    command = [sys.executable, "-c", KILLED_IN_THE_SECOND_BATCH, str(released_folder), str(target)]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
    assert not target.exists()
    assert work.is_dir()
    with pytest.raises(ValueError, match="interrupted conversion"):
        load(work)

    script = REPOSITORY / "convert" / "hf_to_flax.py"
    command = [sys.executable, str(script), str(released_folder), str(target)]
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "removing the remains" in again.stderr
    assert not work.exists()
    jax.tree.map(np.testing.assert_array_equal, load(target).weights, load(converted).weights)


def test_released_files_have_what_the_converter_ignores(released_folder):
    """The stand-in exercises the counting: speech tensors and the unused embedding are there."""
    names = []
    for file in released_folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            names += list(handle.keys())
    assert sum(name.startswith("talker.") for name in names) == 3
    assert sum(name.startswith("token2wav.") for name in names) == 2
    assert "thinker.audio_tower.audio_bos_eos_token.weight" in names
