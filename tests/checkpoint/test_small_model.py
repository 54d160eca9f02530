"""The small trained model as it comes with the package: found, converted once, and right."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.accuracy import measure
from experiments.accuracy_questions import QUESTION_SETS, clip_and_questions
from experiments.accuracy_results import Measurement
from experiments.clip_inputs import Row, clip_to_windows
from experiments.measured_methods import CHANGED_INPUTS, FULL
from omnizip_jax import load
from omnizip_jax.checkpoint import small_model as module
from omnizip_jax.checkpoint.checksums import damaged_files
from omnizip_jax.checkpoint.small_model import RELEASED, small_checkpoint
from omnizip_jax.compression import AllTokens, OmniZipConfig
from omnizip_jax.inference.api import generate
from omnizip_jax.models.registry import read_config
from omnizip_jax.testbed.synthetic_clips import SPEC, make_clip

CLIPS = 50
ROOT = Path(__file__).parents[2]


def test_it_is_small_and_converted_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sum(file.stat().st_size for file in RELEASED.rglob("*")) < 15e6
    assert module.cache_folder() == tmp_path / "omnizip_jax"
    first = small_checkpoint()
    made = first.stat().st_mtime_ns
    assert small_checkpoint() == first and first.stat().st_mtime_ns == made
    assert [path.name for path in module.cache_folder().iterdir()] == [first.name]
    assert "Use it with" not in capfd.readouterr().out


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "omnizip_jax").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        load("small")


def largest(folder: Path, pattern: str = "weights/**/d/*") -> Path:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_size)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture
def cached(cache_folder, tmp_path, monkeypatch):
    """A copy of the converted small model in a cache of its own, to be damaged."""
    folder = small_checkpoint()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Path(shutil.copytree(folder, module.cache_folder() / folder.name))


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("weights/**/d/*", flip),
        pytest.param("weights/**/d/*", truncate, marks=pytest.mark.slow),
        pytest.param("weights/**/d/*", Path.unlink, marks=pytest.mark.slow),
        pytest.param("tokenizer/*", flip, marks=pytest.mark.slow),
        pytest.param("checksums", Path.unlink, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_cache_is_written_again(cached, part, damage):
    fingerprint = (cached / "fingerprint").read_text()
    damage(largest(cached, part))
    assert damaged_files(cached)
    params = load("small")
    assert params.fingerprint == fingerprint
    assert not damaged_files(cached)
    assert [path.name for path in module.cache_folder().iterdir()] == [cached.name]


@pytest.mark.parametrize(
    "rest",
    ["a file", *(pytest.param(r, marks=pytest.mark.slow) for r in ("nothing", "an empty folder"))],
)
def test_a_missing_cache_is_written_again(cached, rest):
    shutil.rmtree(cached)
    if rest == "an empty folder":
        cached.mkdir()
    if rest == "a file":
        cached.write_text("hello")
    load("small")
    assert not damaged_files(cached)


@pytest.mark.slow
def test_two_processes_repair_one_cache(cached):
    flip(
        max(cached.glob("weights/state/ocdbt.process_*/d/*"), key=lambda file: file.stat().st_size)
    )
    script = "from omnizip_jax.checkpoint.load import load; print(load('small').fingerprint)"
    command = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert said == {load("small").fingerprint}
    assert [path.name for path in module.cache_folder().iterdir()] == [cached.name]


@pytest.mark.slow
def test_transformers_gives_the_same_answers(small):
    """Greedy answers to the same tensors, on trained weights."""
    from tests.parity.oracle import Thinker
    from tests.parity.test_thinker import run

    thinker = Thinker(RELEASED, read_config(RELEASED / "config.json"))
    for seed in range(CLIPS):
        clip, questions = clip_and_questions(seed, "test", ("easy", "moving")[seed % 2])
        windows, question = clip_to_windows(clip), questions[seed % 3].text
        asked, _, tokens, _ = run(small, windows, question, 4)
        assert tokens == thinker.greedy(thinker.inputs(windows, asked), 4, small.end_tokens)


@pytest.mark.slow
def test_it_answers_right(small):
    """A floor for the shipped weights; docs/accuracy.md has the measurement."""
    rows = CHANGED_INPUTS | {FULL: Row(AllTokens()), "45 %": Row(OmniZipConfig(keep=0.45))}
    blocks = measure(small, rows, QUESTION_SETS["easy"], range(CLIPS))
    measured = Measurement.of(itertools.chain(*blocks), small, QUESTION_SETS["easy"])
    assert measured.right[FULL].mean() >= 0.92
    assert measured.right["45 %"].mean() >= 0.75
    # With the audio of another clip, questions about both are answered by chance.
    assert measured.right["audio of another clip"][..., 0].mean() < 0.6


@pytest.mark.slow
def test_generate_reads_a_file(small, tmp_path):
    clip = make_clip(0)
    path = clip.write(tmp_path / "clip.mp4")
    question = f"Was there a {clip.objects[0].colour} shape?"
    answer = generate(small, path, question, compression=None, max_new_tokens=4, spec=SPEC)
    assert answer.text.strip() == "yes"
