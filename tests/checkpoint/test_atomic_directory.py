"""One maker of a checkpoint at a time: the lock, and what a killed one leaves."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from omnizip_jax.checkpoint import atomic_directory as module
from omnizip_jax.checkpoint.atomic_directory import MARKER, atomic_directory
from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.safetensors_index import ConversionError

REPOSITORY = Path(__file__).parents[2]

# Stops before the first batch is written, until a file says go.
PAUSED = """
import pathlib, sys, time
from omnizip_jax.checkpoint import convert
from omnizip_jax.cli.main import main
save, signs = convert.ocp.partial.save, pathlib.Path(sys.argv[3])
def pause(*arguments):
    (signs / "ready").touch()
    while not (signs / "go").exists():
        time.sleep(0.01)
    save(*arguments)
convert.ocp.partial.save = pause
sys.exit(main(["convert", *sys.argv[1:3]]))
"""


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model"


def test_only_the_renamed_folder_remains(target):
    with atomic_directory(target) as folder:
        (folder / "file").write_text("made")
        assert folder.is_relative_to(target.with_name("model.unfinished"))
        folder.rename(target)
    assert list(target.parent.iterdir()) == [target]
    assert (target / "file").read_text() == "made"


def test_nothing_remains_after_a_failure(target):
    with pytest.raises(ZeroDivisionError), atomic_directory(target) as folder:
        (folder / "file").write_text("half made")
        raise ZeroDivisionError
    assert not list(target.parent.iterdir())


def test_the_second_is_refused_and_the_first_unharmed(target):
    with atomic_directory(target) as folder:
        (folder / "file").write_text("precious")
        with (
            pytest.raises(ConversionError, match="another conversion to this target is running"),
            atomic_directory(target),
        ):
            pass
        assert (folder / "file").read_text() == "precious"
    with atomic_directory(target):
        pass


def test_the_second_waits(target):
    made = []

    def make(name: str) -> None:
        with atomic_directory(target, wait=True) as folder:
            assert not list(folder.iterdir())
            (folder / name).touch()
            time.sleep(0.02)
            made.append([path.name for path in folder.iterdir()])

    threads = [threading.Thread(target=make, args=(str(number),)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [[str(number)] for number in range(5)]
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("remains", [[], ["weights/d/1"], ["checkpoint/config.json"]])
def test_remains_are_removed(target, remains, capfd):
    unfinished = target.with_name("model.unfinished")
    for name in [MARKER, *remains]:
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).touch()
    with atomic_directory(target) as folder:
        assert not list(folder.iterdir())
        assert {path.name for path in unfinished.iterdir()} == {MARKER, folder.name}
    assert ("removing the remains" in capfd.readouterr().err) == bool(remains)
    assert not unfinished.exists()


def test_files_that_cannot_be_removed_are_left_to_the_next(target, monkeypatch):
    unfinished = target.with_name("model.unfinished")
    with monkeypatch.context() as patch:
        patch.setattr(module, "remove", lambda path: None)
        with atomic_directory(target) as folder:
            (folder / "file").touch()
    assert (unfinished / MARKER).is_file()
    with atomic_directory(target) as folder:
        assert not list(folder.iterdir())
    assert not unfinished.exists()


def test_a_file_in_the_way(target):
    target.with_name("model.unfinished").write_text("precious")
    with pytest.raises(ConversionError, match="cannot be written to"), atomic_directory(target):
        pass
    assert target.with_name("model.unfinished").read_text() == "precious"


@pytest.mark.slow
def test_two_conversions_to_one_target(released_folder, target, tmp_path):
    """The first wins, the second says why it does not; nothing is lost."""
    signs = tmp_path / "signs"
    signs.mkdir()
    command = [sys.executable, "-c", PAUSED, str(released_folder), str(target), str(signs)]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) as first:
        while not (signs / "ready").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with pytest.raises(ConversionError, match="another conversion to this target is running"):
            convert(released_folder, target)
        (signs / "go").touch()
        assert first.wait() == 0
    load(target, verify=True)
    assert {path.name for path in tmp_path.iterdir()} == {"signs", "model"}
    with pytest.raises(ConversionError, match="exists already"):
        convert(released_folder, target)
