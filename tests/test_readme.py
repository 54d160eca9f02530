"""The README's blocks of Python run one after the other, with the small model and made clips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import omnizip_jax
from experiments.accuracy_page import fill, tables
from experiments.accuracy_questions import SURVEYS
from experiments.accuracy_tables import short_table, whole_tables
from omnizip_jax.testbed.synthetic_clips import make_clip

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("clip.mp4", "after.mp4")):
        make_clip(seed).write(Path(name))
    names = {}
    for block in BLOCKS:
        block = block.replace("checkpoints/qwen2.5-omni-3b", "small")
        block = block.replace("number == 14", "number == 2")  # these clips have four windows
        exec(compile(block, "README.md", "exec"), names)
        assert capsys.readouterr().out.strip(), block
    assert len(BLOCKS) == 5 and names["number"] == 3


def test_the_rooms_and_functions_that_it_names_exist():
    package = Path(omnizip_jax.__path__[0])
    rooms = set(re.findall(r"^\| (`[^|]+`) \|", README, re.MULTILINE))
    functions = re.findall(r"`(\w+/\w+\.py): ([^|]+)\|", README)
    assert rooms and functions
    missing = {
        name
        for room in rooms
        for name in re.findall(r"`([\w/.]+)`", room)
        if not (package / name).exists()
    }
    for file, names in functions:
        text = (package / file).read_text()
        missing |= {n for n in re.findall(r"\w+", names) if f"def {n}(" not in text}
    assert not missing


def test_tables_of_accuracy_are_those_that_were_measured():
    summary = json.loads((ROOT / "docs/accuracy.json").read_text())
    assert short_table(summary) in README
    page = (ROOT / "docs/accuracy.md").read_text()
    assert fill(page, tables(summary)) == page
    whole = (ROOT / "docs/accuracy_tables.md").read_text()
    for name, measured in summary.items():
        assert short_table({name: measured}, SURVEYS[name].shares) in whole
    assert whole == whole_tables(summary)
