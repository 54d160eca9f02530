"""Saved contexts go on as if nothing had happened, and what is wrong is refused before reading."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import METHODS, OmniZipConfig, ask, feed, read, restore, save
from omnizip_jax.checkpoint.checksums import write_checksums
from omnizip_jax.compression import AllTokens, Mixed, RandomTokens
from omnizip_jax.inference.snapshot import ABOUT
from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM
from tests.conftest import clip_of
from tests.inference.test_context import (
    QUESTION,
    fed,
    new_stream,
    one,
    plain,
    with_equal_norms,
)


@pytest.fixture(scope="module")
def windows(random_windows):
    return random_windows([2, 2, 1], [200, 200, 77])


def assert_equal(context, other):
    """Every leaf, bit by bit, slots that are not in use included."""
    for a, b in zip(plain(context), plain(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert context.prefill_config == other.prefill_config
    for name in ("memory", "low_water", "text_slots", "system"):
        assert getattr(context.retention, name) == getattr(other.retention, name)


def go_on(params, context):
    """Kept and other questions, and what they leave."""
    first, context = ask(params, context, QUESTION, keep=True, max_new_tokens=5)
    second, context = ask(params, context, "And then?", max_new_tokens=5, temperature=1.0, seed=3)
    return (first.text, first.token_ids, first.counts, second.token_ids), context


def test_a_clip(params, windows, tmp_path):
    context = read(params, clip_of(windows), system=f"{DEFAULT_SYSTEM} Be brief; naïve 東京.")
    save(context, tmp_path / "a" / "clip")
    back = restore(params, str(tmp_path / "a" / "clip"))
    assert_equal(context, back)
    (said, after), (again, back_after) = go_on(params, context), go_on(params, back)
    assert said == again
    assert_equal(after, back_after)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["clip"]


@pytest.mark.parametrize(
    "method",
    [
        OmniZipConfig(),
        *(pytest.param(m, marks=pytest.mark.slow) for m in (RandomTokens(), AllTokens())),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_stream(params, windows, tmp_path, method):
    """Fed until it has forgotten; a method that draws goes on drawing."""
    state = fed(
        params, new_stream(params, method, capacity=768, memory="fading", seed=5), windows, 3
    )
    save(state, tmp_path / "stream")
    back = restore(params, tmp_path / "stream")
    assert_equal(state, back)
    lengths = []
    for i in range(12):
        state, back = (feed(params, s, one(windows, i % 3)) for s in (state, back))
        lengths.append(int(state.cache.length))
    assert min(np.diff(lengths)) < 0
    (said, state), (again, back) = go_on(params, state), go_on(params, back)
    assert said == again
    assert_equal(state, back)


def test_text_alone(params, tmp_path):
    context = read(params, None)
    save(context, tmp_path / "text")
    assert go_on(params, context)[0] == go_on(params, restore(params, tmp_path / "text"))[0]


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    """Text alone is a context too, and quickly made."""
    folder = tmp_path_factory.mktemp("saved") / "context"
    save(read(params, None), folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_other_weights_are_refused(params, folder):
    other = params.replace(weights=jax.tree.map(lambda x: x + 1, params.weights))
    text = dataclasses.replace(params.config.text, max_positions=1000)
    shorter = params.replace(config=dataclasses.replace(params.config, text=text))
    differences = (
        (other, r"weights [0-9a-f]{16} instead of [0-9a-f]{16}$"),
        (shorter, r"which has text\.max_positions \d+ instead of 1000$"),
    )
    for given, message in differences:
        with pytest.raises(ValueError, match=f"saved with another model: .*{message}"):
            restore(given, folder)


def test_values_tell_weights_apart(params, folder):
    copied = jax.tree.map(jnp.copy, params.weights)
    assert restore(params.replace(weights=copied, fingerprint="other"), folder).seconds == 0
    with pytest.raises(ValueError, match="saved with another model"):
        restore(with_equal_norms(params), folder)


@pytest.fixture
def nothing_loaded(monkeypatch):
    def refuse(*_):
        raise AssertionError("the arrays were read")

    monkeypatch.setattr("omnizip_jax.inference.snapshot.ocp.load", refuse)


def edit(folder, **changes):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | changes))
    (folder / "checksums").unlink()
    write_checksums(folder)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a_bit": (lambda f: flip(largest(f)), "damaged"),
    "a_bit_of_the_settings": (lambda f: flip(f / ABOUT), "damaged"),
    "cut_off": (lambda f: largest(f).write_bytes(b""), "damaged"),
    "a_file_less": (lambda f: largest(f).unlink(), "damaged"),
    "no_arrays": (lambda f: shutil.rmtree(f / "arrays"), "without arrays"),
    "no_settings": (lambda f: (f / ABOUT).unlink(), "without context.json"),
    "no_checksums": (lambda f: (f / "checksums").unlink(), "without checksums"),
    "gone": (shutil.rmtree, "not a saved context"),
    "layout": (lambda f: edit(f, layout=0), "layout 0"),
    "method": (lambda f: edit(f, method={"name": "no", "settings": {}}), "METHODS does not have"),
    "setting": (
        lambda f: edit(f, method={"name": "omnizip", "settings": {"knn": 0}}),
        "not with these settings",
    ),
    "arrays": (
        lambda f: edit(f, arrays=arrays_without(f, "state.time")),
        "other arrays.*state.time",
    ),
}


def arrays_without(folder, name):
    arrays = json.loads((folder / ABOUT).read_text())["arrays"]
    del arrays[name]
    return arrays


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(params, copy, nothing_loaded, name):
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(ValueError, match=message):
        restore(params, copy)


def test_an_interrupted_save_leaves_nothing(params, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    context = read(params, None)
    monkeypatch.setattr("omnizip_jax.inference.snapshot.write_checksums", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(context, tmp_path / "context")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    save(context, tmp_path / "context")
    with pytest.raises(ValueError, match="exists already"):
        save(context, tmp_path / "context")


@dataclasses.dataclass(frozen=True)
class Own(AllTokens):
    share: float = 0.5


def test_a_method_needs_a_name(params, tmp_path, monkeypatch):
    context = read(params, None, Own(share=np.float32(0.25)))
    with pytest.raises(ValueError, match=r'METHODS\["..."\] = Own'):
        save(context, tmp_path / "own")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(METHODS, "own", Own)
    save(context, tmp_path / "own")
    assert restore(params, tmp_path / "own").prefill_config.method == Own(share=0.25)


def test_methods_of_methods(params, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    mixed = Mixed(audio=RandomTokens(), video=OmniZipConfig(rho_video=0.65))
    save(read(params, None, mixed), tmp_path / "mixed")
    assert restore(params, tmp_path / "mixed").prefill_config.method == mixed


def test_wrong_arguments(params, folder):
    for call in (
        lambda: save(read(params, None), 3),
        lambda: save("context", "path"),
        lambda: restore(None, folder),
        lambda: restore(params, None),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
