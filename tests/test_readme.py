"""README, CONTRIBUTING and usage page: their Python runs, the names they mention exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import omnizip_jax
from experiments.accuracy_questions import QUESTION_SETS
from experiments.accuracy_tables import fill, short_table, tables, whole_tables
from omnizip_jax.testbed.synthetic_clips import make_clip

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), [("README.md", 1), ("docs/usage.md", 3)])
def test_every_block_runs(page, number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("omnizip-demo").mkdir()
    for seed, name in enumerate(("clip.mp4", "after.mp4", "omnizip-demo/clip.mp4")):
        make_clip(seed).write(Path(name))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) == number
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
        assert capsys.readouterr().out.strip(), block
    if page == "README.md":
        assert names["number"] == 3  # these clips have four windows


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 130


@pytest.mark.parametrize("page", (*PAGES, "CONTRIBUTING.md"))
def test_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    broken = []
    for link in (link for link in links if not link.startswith("http")):
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in _anchors(path.read_text())):
            broken.append(link)
    assert not broken


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_rooms_and_functions_that_contributing_names_exist():
    package = Path(omnizip_jax.__path__[0])
    rooms = set(re.findall(r"^\| (`[^|]+`) \|", CONTRIBUTING, re.MULTILINE))
    functions = re.findall(r"`(\w+/\w+\.py): ([^|]+)\|", CONTRIBUTING)
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
    page = (ROOT / "docs/accuracy.md").read_text()
    assert short_table(summary) in page
    assert fill(page, tables(summary)) == page
    whole = (ROOT / "docs/accuracy_tables.md").read_text()
    for name, measured in summary.items():
        assert short_table({name: measured}, QUESTION_SETS[name].shares) in whole
    assert whole == whole_tables(summary)
