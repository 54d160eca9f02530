"""Killed conversions, and checkpoints damaged at random: refused with a message, or loaded right.

Allowed is to refuse in words, or to load the right thing. Not allowed: a crash, a hang beyond 60 s,
another exception than a ``ValueError`` about the folder, or something else than was stored. Bits
are flipped where there is a checksum, or in headers: released files have none for their values.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import faulthandler
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.checkpoint.checksums import damaged_files
from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.models.decoder import Decoder
from omnizip_jax.models.loaded_model import Params
from tests.forked_command import start_command

REPOSITORY = Path(__file__).parents[2]
KILLS = 40
SECONDS = 60  # beyond them a call hangs

CONVERSION = """
import sys
from omnizip_jax.cli.main import main
sys.exit(main(["convert", *sys.argv[1:]]))
"""

pytestmark = pytest.mark.slow


# --- kills


def test_killed_conversions(released_folder, converted, tmp_path, capfd):
    rng = random.Random(0)
    target, unfinished = tmp_path / "model", tmp_path / "model.unfinished"
    fingerprint = load(converted).fingerprint

    def run(seconds: float | None) -> tuple[int | None, float]:
        """Kill a conversion so long after it began; its exit code and how long it took."""
        words, shown = ("convert", str(released_folder), str(target)), Path(os.devnull)
        process = start_command(*words, out=shown, err=shown)
        began = time.monotonic()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode, time.monotonic() - began

    run(None)  # the first one waits for the imports
    shutil.rmtree(target)
    code, whole = run(None)
    assert code == 0
    outcomes = collections.Counter()
    for _ in range(KILLS):
        shutil.rmtree(target, ignore_errors=True)
        code, _ = run(rng.uniform(0, 1.1 * whole))
        if target.exists():
            outcome = "finished" if code == 0 else "killed at the end"
            assert load(target, verify=True).fingerprint == fingerprint
        else:
            outcome = "killed amid" if unfinished.exists() else "killed at the beginning"
            for folder in (
                target,
                unfinished,
                *(path for path in unfinished.rglob("*") if path.is_dir()),
            ):
                with pytest.raises(ValueError):
                    load(folder)
        outcomes[outcome] += 1
        shutil.rmtree(target, ignore_errors=True)
        convert(released_folder, target)  # cleans up, whatever was left
        assert load(target, verify=True).fingerprint == fingerprint
        assert list(tmp_path.iterdir()) == [target]
    capfd.readouterr()
    print(dict(outcomes))
    assert outcomes["killed amid"] >= KILLS // 4


@pytest.mark.parametrize("makers", [4])
def test_a_race(released_folder, converted, tmp_path, makers):
    """One of them wins, the others say so."""
    command = [sys.executable, "-c", CONVERSION, str(released_folder), str(tmp_path / "model")]
    processes = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=-3, stderr=-1) for _ in range(makers)
    ]
    said = [process.communicate()[1].decode() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0] + [1] * (makers - 1)
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "another conversion" in text or "exists already" in text
    assert load(tmp_path / "model", verify=True).fingerprint == load(converted).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- mutations: what is done, to the released or to the converted folder, and whether to verify

Mutation = tuple[str, str, bool, Callable[[Path, random.Random], str]]


def config_entry(folder: Path, rng: random.Random) -> str:
    """Change or remove one entry of the thinker's configuration."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    section, path = values["thinker_config"], ["thinker_config"]
    while True:
        name = rng.choice(sorted(section))
        path.append(name)
        if not isinstance(section[name], dict) or rng.random() < 0.1:
            break
        section = section[name]
    strange = [None, -1, 0, 1, 3, 7, 64, 0.5, 1e30, math.nan, "x", "", "8", [], {}, True, 10**12]
    if rng.random() < 0.15:
        del section[name]
        what = "removed"
    else:
        section[name] = rng.choice(strange)
        what = repr(section[name])
    file.write_text(json.dumps(values))
    return f"{'.'.join(path)} {what}"


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def truncated(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    content = file.read_bytes()
    length = rng.randrange(max(1, len(content)))
    file.write_bytes(content[:length])
    return f"{file.relative_to(folder)} at {length} of {len(content)}"


def missing(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    file.unlink()
    return str(file.relative_to(folder))


def flipped(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    while not file.stat().st_size:
        file = any_file(folder, rng)
    return _flip(file, rng.randrange(file.stat().st_size), rng)


def flipped_header(folder: Path, rng: random.Random) -> str:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    length = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    return _flip(file, rng.randrange(length), rng)


def _flip(file: Path, position: int, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8)
    content[position] ^= 1 << bit
    file.write_bytes(content)
    return f"{file.name} bit {bit} of byte {position}"


def broken_index(folder: Path, rng: random.Random) -> str:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names = sorted(index["weight_map"])
    what = rng.randrange(4)
    if what == 0:
        index["weight_map"][rng.choice(names)] = rng.choice(
            [None, 3, "", "..", "/etc/passwd", "config.json", "model-9.safetensors", ["a"]]
        )
    elif what == 1:
        index = rng.choice([{}, [], None, {"weight_map": []}, {"weight_map": {}}])
    elif what == 2:
        del index["weight_map"][rng.choice(names)]
    else:
        index["weight_map"] = {name: "model-00001-of-00002.safetensors" for name in names}
    file.write_text(json.dumps(index))
    return f"way {what}"


MUTATIONS: list[Mutation] = [
    *[("config entry, released", "released", False, config_entry)] * 25,
    *[("config entry, converted", "converted", False, config_entry)] * 10,
    *[("truncated, released", "released", False, truncated)] * 10,
    *[("missing, released", "released", False, missing)] * 5,
    *[("flipped header, released", "released", False, flipped_header)] * 10,
    *[("broken index, released", "released", False, broken_index)] * 10,
    *[("truncated, converted", "converted", False, truncated)] * 5,
    *[("truncated, verified", "converted", True, truncated)] * 5,
    *[("missing, converted", "converted", False, missing)] * 5,
    *[("flipped, verified", "converted", True, flipped)] * 15,
]


def test_mutated_folders(released_folder, converted, tmp_path, capfd):
    assert len(MUTATIONS) == 100
    folders = {"released": released_folder, "converted": converted}
    right = load(converted)
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    failures = []
    for number, (kind, which, verify, mutate) in enumerate(MUTATIONS):
        folder = Path(shutil.copytree(folders[which], tmp_path / f"{number}"))
        what = mutate(folder, random.Random(number))
        before = json.loads((released_folder / "config.json").read_text())
        try:
            with time_limit():
                target = folder
                if which == "released":
                    target = tmp_path / f"{number}-converted"
                    convert(folder, target)
                    assert not damaged_files(target)
                outcome = judge(load(target, verify=verify), right, folder, before)
        except ValueError as error:
            named = str(folder) in str(error) or "config.json" in str(error)
            outcome = "refused" if named else f"refused without a name: {error!r}"
            if target != folder and target.exists():
                outcome = f"converted, but not loadable: {error}"
        except Exception as error:
            outcome = repr(error)
        if verify and outcome != "refused" and "checksums" not in what:
            outcome = "not noticed"
        outcomes[kind][outcome] += 1
        if outcome not in ("refused", "right", "as transformers"):
            failures.append(f"{kind}, {what}: {outcome}")
        for path in tmp_path.glob(f"{number}*"):
            shutil.rmtree(path)
    capfd.readouterr()
    for kind, counts in outcomes.items():
        print(kind, dict(counts))
    assert not failures, "\n".join(failures)
    assert sum(counts["refused"] for counts in outcomes.values()) >= 60


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"hangs for {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal gets through
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def judge(found: Params, right: Params, folder: Path, before: dict[str, Any]) -> str:
    """Whether what was loaded is what was stored, and is computed as transformers computes it."""
    for ours, stored in itertools.zip_longest(
        *map(jax.tree.leaves, (found.weights, right.weights))
    ):
        if not np.array_equal(ours, stored):
            return "other weights"
    text = "<|im_start|>user\n<|VIDEO|>What is said?<|im_end|>"
    if found.tokenizer(text).input_ids != right.tokenizer(text).input_ids:
        return "another tokenizer"
    if found.tokenizer.chat_template != right.tokenizer.chat_template:
        return "another template"
    after = json.loads((folder / "config.json").read_text())
    if found.config == right.config and copy.deepcopy(after) == before:
        return "right"
    return compare_with_transformers(found, folder)


def compare_with_transformers(found: Params, folder: Path) -> str:
    """Another configuration was accepted: then text gets the logits of transformers under it."""
    import torch
    from transformers import Qwen2_5OmniThinkerConfig
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    values = json.loads((folder / "config.json").read_text())["thinker_config"]
    values["tie_word_embeddings"] = False  # another test compares who ties what
    try:
        config = Qwen2_5OmniThinkerConfig(**values)
        theirs = Thinker._from_config(config, dtype=torch.float32).eval()
    except Exception:  # it minds entries that this library does not read
        return "right"
    tower = theirs.model.language_model
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found.weights["text"])
    assert not found.config.text.tied  # as everything here is stored
    with torch.no_grad():
        for name, parameter in [
            *tower.named_parameters(),
            ("lm_head.weight", theirs.lm_head.weight),
        ]:
            parts = name.split(".")
            leaf = weights
            layer = int(parts.pop(1)) if parts[0] == "layers" else None
            last = {"embed_tokens": "embedding"}.get(parts[-2], parts[-1])
            for part in parts[:-1]:
                leaf = leaf[part]
            leaf = leaf["scale"] if "scale" in leaf else leaf[last]
            parameter.copy_(torch.tensor(np.asarray(leaf if layer is None else leaf[layer])))
        tokens = torch.arange(40, 60)[None]
        expected = theirs.lm_head(tower(input_ids=tokens).last_hidden_state)[0].numpy()
    decoder = Decoder(found.config.text)
    ours = decoder.apply({"params": weights}, jnp.arange(40, 60), method=Decoder.init_all)
    return "as transformers" if np.allclose(ours, expected, atol=1e-4) else "other logits"
