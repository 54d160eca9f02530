"""Damage is found and named; the same weights have the same fingerprint."""

from __future__ import annotations

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnizip_jax.checkpoint import convert
from omnizip_jax.checkpoint.checksums import damaged_files, write_checksums
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.safetensors_index import ConversionError
from omnizip_jax.models.loaded_model import describe_array, weights_fingerprint


def largest(folder: Path) -> Path:
    return max((folder / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)


def flip(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def zero_a_quarter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) * 3 // 4] = bytes(len(content) // 4)
    file.write_bytes(content)


def test_every_file_has_its_checksum(converted):
    lines = [line.split("  ") for line in (converted / "checksums").read_text().splitlines()]
    files = {str(path.relative_to(converted)) for path in converted.rglob("*") if path.is_file()}
    assert {name for _, name in lines} == files - {"checksums"}
    for checksum, name in lines:
        assert int(checksum, 16) == zlib.crc32((converted / name).read_bytes())


def test_whole_and_verified(converted):
    assert not damaged_files(converted)
    one, other = load(converted, verify=True), load(converted)
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)
    assert one.fingerprint == other.fingerprint


def test_any_single_bit(copy):
    file = largest(copy)
    for position in range(0, file.stat().st_size, file.stat().st_size // 23):
        flip(file, position, position % 8)
        with pytest.raises(ValueError, match="damaged files") as caught:
            load(copy, verify=True)
        assert f"{file.relative_to(copy)}: changed" in str(caught.value)
        flip(file, position, position % 8)
    load(copy, verify=True)


@pytest.mark.parametrize(
    "damage", [zero_a_quarter, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:99])]
)
def test_larger_damage(copy, damage):
    file = largest(copy)
    damage(file)
    with pytest.raises(ValueError, match=str(file.relative_to(copy))):
        load(copy, verify=True)


@pytest.mark.parametrize("name", ["config.json", "fingerprint", "tokenizer/tokenizer.json"])
def test_other_files_are_verified_too(copy, name):
    flip(copy / name, 10)
    with pytest.raises(ValueError, match=f"damaged files[^$]*{name}: changed"):
        load(copy, verify=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe", b"00000000  config.json\n"])
def test_damaged_checksums(copy, content):
    (copy / "checksums").write_bytes(content)
    with pytest.raises(ValueError, match="damaged files"):
        load(copy, verify=True)


@pytest.mark.parametrize("name", ["checksums", "fingerprint", "config.json"])
def test_an_incomplete_folder(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"not a converted checkpoint, without {name}"):
        load(copy)


def test_a_damaged_fingerprint(copy):
    (copy / "fingerprint").write_text("hello")
    with pytest.raises(ValueError, match="damaged fingerprint"):
        load(copy)


def test_added_files_are_ignored(copy):
    (copy / "NOTES").write_text("mine")
    load(copy, verify=True)


def test_checksum_of_an_empty_and_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("omnizip_jax.checkpoint.checksums.READ_BYTES", 7)
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(range(100)))
    write_checksums(tmp_path)
    assert f"{zlib.crc32(bytes(range(100))):08x}  large" in (tmp_path / "checksums").read_text()
    assert not damaged_files(tmp_path)


def test_checksum_of_an_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    checksum = f"{zlib.crc32(array.tobytes()):08x}"
    assert describe_array("a/b", array) == f"a/b float32 (2, 3) {checksum}"
    narrow = array.astype(ml_dtypes.bfloat16)
    assert describe_array("c", narrow).endswith(f"{zlib.crc32(narrow.tobytes()):08x}")
    assert describe_array("a/b", jnp.asarray(array)) == describe_array("a/b", array)


def test_the_fingerprint_of_the_values_is_that_of_the_conversion(converted):
    params = load(converted)
    copied = params.replace(weights=jax.tree.map(jnp.copy, params.weights))
    assert weights_fingerprint(params) == weights_fingerprint(copied) == params.fingerprint
    scaled = params.replace(weights=jax.tree.map(lambda x: 2 * x, params.weights))
    assert weights_fingerprint(scaled) != params.fingerprint


# --- fingerprints


def test_one_value_changes_the_fingerprint(source, converted, tmp_path):
    file = min(source.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["thinker.audio_tower.ln_post.bias"][3] += 1
    save_file(tensors, file)
    convert.convert(source, tmp_path / "other")
    assert load(tmp_path / "other").fingerprint != load(converted).fingerprint


def test_another_type_changes_the_fingerprint(converted):
    stored, wide = load(converted), load(converted, "float32")
    assert wide.fingerprint != stored.fingerprint
    assert load(converted, "bfloat16").fingerprint == stored.fingerprint


def test_another_fingerprint_compiles_nothing(converted):
    """Programs take the weights, so that a fine-tune runs in what was compiled."""
    traces = []

    @jax.jit
    def total(weights):
        traces.append(1)
        return weights["text"]["norm"]["scale"].sum()

    params = load(converted)
    total(params.weights)
    total(params.replace(fingerprint="0" * 16).weights)
    assert len(traces) == 1


# --- weights that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(source, tmp_path, value):
    file = min(source.glob("*.safetensors"))
    tensors = load_file(file)
    names = [f"thinker.audio_tower.layers.{layer}.fc1.weight" for layer in range(2)]
    for name in names:
        tensors[name][-1, :2] = value
    save_file(tensors, file)
    with pytest.raises(ConversionError, match="not finite in bfloat16") as caught:
        convert.convert(source, tmp_path / "model")
    for name in names:
        assert f"{name}: 2 of {tensors[name].size} values" in str(caught.value)
    assert not list(tmp_path.glob("model*"))


def test_too_large_for_the_type(source, tmp_path):
    file = min(source.glob("*.safetensors"))
    tensors = load_file(file)
    name = "thinker.audio_tower.ln_post.bias"
    tensors[name] = np.full(tensors[name].shape, np.finfo(np.float32).max)
    save_file(tensors, file)
    with pytest.raises(ConversionError, match=f"not finite in bfloat16[^$]*{name}: 32 of 32"):
        convert.convert(source, tmp_path / "model", "bfloat16")
    convert.convert(source, tmp_path / "model")
    np.testing.assert_array_equal(
        load(tmp_path / "model").weights["audio"]["ln_post"]["bias"], tensors[name]
    )
