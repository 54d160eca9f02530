"""Timing, rows and tables."""

import io
import json
import os
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Goal
from benchmarks.harness import MOST_ROUNDS, Row, Timing, alternate, print_rows, show
from tests.conftest import NO_OPTIMISATION


def test_calls_alternate_and_the_warm_up_is_not_counted():
    order = []
    timings = alternate(lambda: order.append("a"), lambda: order.append("b"), repeats=3, warm=1)
    assert order == ["a", "b"] * 4
    assert [len(timing.samples) for timing in timings] == [3, 3]


def test_short_calls_are_repeated_more_often():
    (timing,) = alternate(lambda: None, repeats=3, seconds=5)
    assert len(timing.samples) == MOST_ROUNDS
    (timing,) = alternate(lambda: time.sleep(0.05), repeats=3, seconds=0.12)
    assert len(timing.samples) == 3


def test_a_row_of_seconds():
    ours, peer = Timing((2.0, 1.0, 4.0)), Timing((6.0, 5.0, 7.0))
    row = Row.timed("suite.what", ours, peer, "them", floor=0.25, per=2)
    assert (row.value, row.peer, row.ratio, row.share) == (1.0, 3.0, 3.0, 0.25)
    assert row.spread == (0.5, 2.0)
    values = json.loads(row.as_json())
    assert {"name", "value", "unit", "peer", "ratio", "floor"} <= values.keys()
    alone = Row.timed("suite.what", ours)
    assert alone.ratio is None and alone.share is None and alone.met is None


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("ratio", least=3), True),
        (Goal("ratio", least=3.5), False),
        (Goal("share", least=0.2), True),
        (Goal("value", most=1.5), False),
    ],
)
def test_goals(goal, met):
    row = Row("suite.what", 2.0, peer=6.0, ratio=3.0, floor=0.5, goal=goal)
    assert row.met is met
    assert json.loads(row.as_json())["met"] is met


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5, "s", "2.5 s"),
        (0.0025, "s", "2.5 ms"),
        (0.052, "share", "5.2%"),
        (15.9e6, "B", "15.9 MB"),
        (27.0, "x", "27 x"),
        (None, "s", ""),
    ],
)
def test_quantities_have_readable_units(value, unit, text):
    assert show(value, unit) == text


def test_the_table_fits_a_plain_terminal():
    times = Timing((0.123, 0.1, 0.456)), Timing((12.3, 11.1, 45.6))
    rows = [
        Row.timed("compression.temporaries_published", *times, "a peer", floor=0.0123, note="n=1"),
        Row.timed("decode.fast", *times, "a peer", floor=0.0123, goal=Goal("ratio", least=10)),
    ]
    screen = io.StringIO()
    print_rows(Console(file=screen, width=80), "compression, preset small", rows)
    _, _, head, _, *lines = screen.getvalue().splitlines()
    assert head.split() == ["stage", "ours", "peer", "ratio", "floor", "share", "goal"]
    assert re.split("  +", lines[0].strip())[:4] == [
        "temporaries_published",
        "123 ms",
        "12.3 s",
        "100.00x",
    ]
    assert re.search(r">= 10x +met +$", lines[1])
    assert lines[3:] == [
        "temporaries_published: ours 100 ms to 456 ms; peer 11.1 s to 45.6 s: a peer; n=1",
        "fast: ours 100 ms to 456 ms; peer 11.1 s to 45.6 s: a peer",
    ]


@pytest.mark.slow
def test_every_goal_has_its_row(tmp_path):
    rows = tmp_path / "rows.json"
    command = ["-m", "benchmarks", "all", "--preset", "tiny", "--repeats", "1", "--json", str(rows)]
    environment = os.environ | {"XLA_FLAGS": NO_OPTIMISATION}  # compiling takes most of the time
    subprocess.run([sys.executable, *command], check=True, env=environment)
    names = {json.loads(line)["name"] for line in rows.read_text().splitlines()}
    assert set(goals.CPU) | set(goals.GPU) <= names
