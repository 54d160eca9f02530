"""``python -m benchmarks SUITE``: measure on this machine, with peers and floors."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

SUITES = {  # name on the command line: module with a function ``run(bench) -> rows``
    "compression": "compression",
    "methods": "methods",
    "prefill": "prefill",
    "first-token": "first_token",
    "questions": "questions",
    "evaluate": "evaluate",
    "decode": "decode",
    "quantized": "quantized",
    "stages": "stages",
    "stream": "stream",
    "serve": "serve",
    "media": "media",
    "convert": "convert",
    "compile": "compile",
    "memory": "memory",
}
PRESETS = ("tiny", "small", "experts", "3b", "7b", "30b")
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--windows", type=int, help="windows of 2 s in a clip (default: preset's)")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement, at least")
    parser.add_argument("--json", type=Path, help="append one JSON line per row to this file")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.windows or 1) < 1:
        parser.error("--repeats and --windows must be at least 1")
    if arguments.suite == "all":
        run_all(arguments)
    else:
        run_suite(arguments)


def run_suite(arguments: argparse.Namespace) -> None:
    """Run one suite in this process."""
    from benchmarks import machine
    from benchmarks.harness import print_rows
    from benchmarks.run_state import Bench

    module = importlib.import_module(f"benchmarks.{SUITES[arguments.suite]}")
    console = Console()
    bench = Bench(arguments.preset, arguments.windows, arguments.repeats, console)
    console.print(machine.describe(), highlight=False)
    if not bench.has_torch:
        console.print('PyTorch is not installed: no peers. `pip install -e ".[test]"` brings it.')
    rates = bench.machine
    console.print(
        f"measured: {rates.flops / 1e9:.0f} GFLOP/s ({bench.dtype}), {rates.bytes / 1e9:.1f} GB/s",
        highlight=False,
    )
    rows = []
    for row in module.run(bench):
        rows.append(row)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(row.as_json() + "\n")
    print_rows(console, f"{arguments.suite}, preset {arguments.preset}", rows)


def run_all(arguments: argparse.Namespace) -> None:
    """Run each suite in its own process, so that peaks of memory are its own too."""
    options = ["--preset", arguments.preset, "--repeats", str(arguments.repeats)]
    if arguments.windows:
        options += ["--windows", str(arguments.windows)]
    failed, began = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "rows.json"
        results.touch()
        for suite in SUITES:
            command = [sys.executable, "-m", "benchmarks", suite, *options, "--json", str(results)]
            if subprocess.run(command, cwd=ROOT).returncode:
                failed.append(suite)
        lines = results.read_text().splitlines()
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
    print_goals([json.loads(line) for line in lines])
    print(f"{time.perf_counter() - began:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def print_goals(rows: list[dict[str, Any]]) -> None:
    """Print which goals are met."""
    for row in rows:
        if "goal" in row:
            verdict = "no peer" if row.get("met") is None else "met" if row["met"] else "MISSED"
            figure = f"{row['figure']:.3g}" if "figure" in row else ""
            print(f"{verdict:8} {row['name']:32} {figure:>6}  goal {row['goal']}")


if __name__ == "__main__":
    main()
