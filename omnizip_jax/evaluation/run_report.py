"""The report of one run: what it got right, what it kept, what it took, and where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from omnizip_jax.evaluation.markdown_tables import (
    difference,
    lined_up,
    percent,
    seconds_with_interval,
    section,
    share,
    size,
    table,
    tera,
    with_interval,
)
from omnizip_jax.evaluation.result_files import write_whole
from omnizip_jax.evaluation.summary import STAGES, summarise

Summary = dict[str, Any]


def write_report(path: str | os.PathLike[str]) -> Path:
    """Write ``NAME.report.json`` and ``NAME.report.md`` beside the rows; returns the latter."""
    path, summary = Path(path), summarise(path)
    write_whole(path.with_suffix(".report.json"), json.dumps(summary, indent=1) + "\n")
    target = path.with_suffix(".report.md")
    write_whole(target, lined_up(markdown(summary)) + "\n")
    return target


def markdown(summary: Summary) -> str:
    """A run's report."""
    run, methods = summary["run"], summary["methods"]
    title = (
        f"# {run['name']}\n\nProtocol {run['protocol']}, {run['dtype']}, weights {run['weights']}"
    )
    parts = [title, *_accuracy(summary), _kept(methods), _operations(methods), _seconds(summary)]
    return "\n\n".join([*parts, _where(summary)])


def _accuracy(summary: Summary) -> list[str]:
    """A table for each benchmark, with its categories."""
    methods, first = summary["methods"], summary["first"]
    benchmarks = dict.fromkeys(b for each in methods.values() for b in each["accuracy"])
    out = []
    for benchmark in benchmarks:
        found = {name: each["accuracy"].get(benchmark) for name, each in methods.items()}
        found = {name: accuracy for name, accuracy in found.items() if accuracy}
        categories = dict.fromkeys(c for each in found.values() for c in each["categories"])
        grouped = any("mean of groups" in each for each in found.values())
        compared = len(found) > 1
        heading = ["method", "questions", *categories, "all (95 %)"]
        heading += ["mean of groups"] * grouped + [f"minus {first} (95 %)"] * compared
        rows = []
        for name, accuracy in found.items():
            cells = [accuracy["categories"].get(category) for category in categories]
            row = [name, str(accuracy["questions"])]
            row += [percent(cell["mean"] if cell else None) for cell in cells]
            row += [with_interval(accuracy)]
            row += [percent(accuracy.get("mean of groups"))] * grouped
            row += [difference(methods[name]["minus first"].get(benchmark))] * compared
            rows.append(row)
        errors = sum(each["errors"] for each in methods.values())
        note = f"{errors} rows hold an error and count as wrong." if errors else ""
        out.append(section(f"Right answers, {benchmark}, %", table(heading, rows), note))
    return out


def _kept(methods: dict[str, Any]) -> str:
    names = {
        "planned": "planned, at most",
        "kept": "kept",
        "audio": "of the sound",
        "video": "of the picture",
        "kept_with_text": "with text",
        "by_layer": "over the layers",
        "by_layer_with_text": "over the layers, with text",
    }
    rows = [
        [name, *(share(each["kept"].get(key, {}).get("mean")) for key in names)]
        for name, each in methods.items()
    ]
    note = (
        "Shares of the tokens of sound and picture that enter the decoder, mean over the "
        "questions; over the layers: averaged, as stages inside the decoder drop more."
    )
    return section("Kept", table(["method", *names.values()], rows), note)


def _operations(methods: dict[str, Any]) -> str:
    counts = {
        "paper_operations": "eq. 9 of the paper",
        "operations": "true count",
        "seats_operations": "as SEATS counts",
    }
    heading = ["method"]
    for name in counts.values():
        heading += [f"{name}, 10^12", "of all tokens"]
    rows = []
    for name, each in methods.items():
        row = [name]
        for key in counts:
            count = each["operations"].get(key, {})
            row += [tera(count.get("median")), share(count.get("share", {}).get("median"))]
        rows.append([*row, size(each.get("cache bytes", {}).get("median"))])
    note = (
        "Medians. Eq. 9: media tokens alone and 100 decoded ones. True count: the prompt with its "
        "text, grouped-query and causal attention, three matrices, the first token's logits. "
        "SEATS: the same with a multiply-add as one."
    )
    return section("Operations and cache", table([*heading, "keys and values"], rows), note)


def _seconds(summary: Summary) -> str:
    rows = [
        [name, *(seconds_with_interval(each["seconds"].get(stage)) for stage in STAGES)]
        for name, each in summary["methods"].items()
    ]
    apart = all(session["one by one"] for session in summary["sessions"])
    note = (
        "Medians with 95 % intervals, for one question by itself: what questions share is in each. "
        "Prefill: compression, clip and question; first token: encoders and prefill; latency: all. "
        "The first of its shape takes longer: it is compiled. "
    )
    note += (
        "One clip at a time."
        if apart
        else "Clips were read while others were asked about, which disturbs these times: "
        "`--one-by-one` does not."
    )
    return section("Seconds", table(["method", *STAGES], rows), note)


def _where(summary: Summary) -> str:
    lines = []
    for session in summary["sessions"]:
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        lines.append(
            f"- {session['date']}: {session['device']}, {session['cores']} cores, "
            f"{session['system']}; {versions}"
        )
    if summary["peak bytes"]:
        what = summary["sessions"][-1]["memory"] if summary["sessions"] else "memory"
        peaks = ", ".join(
            f"after {stage} {size(peak)}" for stage, peak in summary["peak bytes"].items()
        )
        lines.append(f"- Peak of the {what} so far, over all clips and methods: {peaks}")
    return section("Where", "\n".join(lines))
