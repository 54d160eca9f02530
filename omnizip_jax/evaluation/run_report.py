"""Summary and report of one run, from its files: accuracy, tokens kept, operations, seconds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnizip_jax.evaluation.confidence_intervals import mean_over, median_of
from omnizip_jax.evaluation.dataset_readers import BENCHMARKS
from omnizip_jax.evaluation.decoder_cost import paper_operations, prefill_operations
from omnizip_jax.evaluation.markdown_tables import (
    aligned_table,
    difference,
    percent,
    seconds_with_interval,
    section,
    share,
    size,
    tera,
    with_interval,
)
from omnizip_jax.evaluation.result_files import (
    read_rows,
    read_run,
    read_times,
    session_remarks,
    write_text,
)
from omnizip_jax.models.config import TextConfig

Row = dict[str, Any]
Summary = dict[str, Any]
OWN = "questions"  # the benchmark of rows without one
STAGES = ("media", "encoders", "prefill", "first token", "decoding", "latency")
SHARES = {
    "planned": "planned, at most",
    "kept": "kept",
    "audio": "of audio",
    "video": "of video",
    "kept_with_text": "with text",
    "by_layer": "mean over layers",
    "by_layer_with_text": "mean over layers, with text",
}
COUNTS = {
    "paper_operations": "eq. 9 of the paper",
    "operations": "true count",
    "seats_operations": "as SEATS counts",
}


def write_report(path: str | os.PathLike[str]) -> Path:
    """Write ``NAME.report.json`` and ``NAME.report.md`` beside the rows; returns the latter."""
    path, summary = Path(path), summarise(path)
    write_text(path.with_suffix(".report.json"), json.dumps(summary, indent=1) + "\n")
    target = path.with_suffix(".report.md")
    write_text(target, markdown(summary) + "\n")
    return target


def summarise(path: str | os.PathLike[str]) -> Summary:
    """The summary of a run.

    Args:
        path: of the rows, ``NAME.jsonl``.

    Returns:
        Settings, machines, peak memory, what limits the run (``remarks``), and for each method:
        questions, errors, accuracy by benchmark and category with intervals, paired differences
        from the first method, shares kept (planned and measured), three counts of operations,
        seconds by stage.

    Raises:
        ValueError: ``path`` is not a file of results, or has no row.
    """
    run, rows, times = read_run(path), read_rows(path), read_times(path)
    if not rows:
        raise ValueError(f"{path}: no row in it yet")
    by_method = {name: [row for row in rows if row["method"] == name] for name in run["methods"]}
    by_method = {name: own for name, own in by_method.items() if own}
    questions = max(run.get("questions", 0), len({row["id"] for row in rows}))
    first = next(iter(by_method))
    timed = [line for line in times if "peak bytes" in line]
    sessions = [line["session"] for line in times if "session" in line]
    methods = {}
    for name, own in by_method.items():
        seconds = [line["seconds"] for line in timed if line["method"] == name]
        methods[name] = {
            "settings": run["methods"][name],
            "questions": len({row["id"] for row in own}),
            "seeds": (seeds := len({row["seed"] for row in own})),
            "partial": len(own) < questions * seeds,
            "errors": sum(row["error"] is not None for row in own),
            "asked": {
                benchmark: _digest([row["id"], row.get("question")] for row in part)
                for benchmark, part in _split(own, "benchmark", OWN).items()
            },
            "accuracy": _accuracy(own),
            "minus first": {} if name == first else _difference(own, by_method[first]),
            **_cost([row for row in own if row["error"] is None], TextConfig(**run["decoder"])),
            "seconds": {
                stage: _median(measured)
                for stage in STAGES
                if (measured := [line[stage] for line in seconds if stage in line])
            },
        }
    total = questions * run.get("runs", len(methods))
    return {
        "run": {"name": Path(path).stem, "file": str(path), **run},
        "remarks": [
            *[f"partial: {len(rows)} of {total} rows"] * (len(rows) < total),
            *session_remarks(times),
        ],
        "sessions": sessions,
        "peak bytes": {
            stage: max(line["peak bytes"][stage] for line in timed)
            for stage in ("encoders", "prefill", "decoding")
            if timed
        },
        "first": first,
        "methods": methods,
    }


def _digest(asked: Iterable[Any]) -> str:
    """A digest of the questions of rows: equal ones are about the same questions."""
    lines = sorted({json.dumps(each) for each in asked})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy by benchmark: over all its questions, by category, and by groups if it has any."""
    out: dict[str, Any] = {}
    for benchmark, own in _scored_by_benchmark(rows).items():
        categories = _split(own, "category", None)
        means = {category: _mean(part) for category, part in categories.items()}
        unread = [row for row in own if row["error"] is None and row.get("read", "") is None]
        errors = sum(row["error"] is not None for row in own)
        counts = {"errors": errors, "unread": len(unread)}
        out[benchmark] = _mean(own) | counts | {"categories": means}
        if benchmark in BENCHMARKS and BENCHMARKS[benchmark].grouped:
            groups = [_split(part, "category", "") for part in _split(own, "group", "").values()]
            of_groups = [np.mean([_mean(x)["mean"] for x in each.values()]) for each in groups]
            out[benchmark]["mean of groups"] = float(np.mean(of_groups))
    return out


def _difference(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    """Mean difference from the reference on the same questions, by benchmark."""
    others = _by_question([row for row in reference if row["correct"] is not None])
    out = {}
    for benchmark, own in _scored_by_benchmark(rows).items():
        shared = {key: value for key, value in _by_question(own).items() if key in others}
        if shared:
            values = [correct - others[key][0] for key, (correct, _) in shared.items()]
            clips = [clip for _, clip in shared.values()]
            out[benchmark] = _with_interval(values, clips)
    return out


def _scored_by_benchmark(rows: Iterable[Row]) -> dict[str, list[Row]]:
    return _split([row for row in rows if row["correct"] is not None], "benchmark", OWN)


def _split(rows: Sequence[Row], column: str, default: str | None) -> dict[str, list[Row]]:
    """Rows by the value of a column; rows without it by ``default``, or omitted if it is None."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        key = row.get(column, default)
        if key is not None:
            out.setdefault(str(key), []).append(row)
    return out


def _by_question(rows: Sequence[Row]) -> dict[str, tuple[float, str]]:
    """For each question the accuracy over seeds, and its clip."""
    return {
        key: (float(np.mean([row["correct"] for row in own])), own[0]["video"])
        for key, own in _split(rows, "id", None).items()
    }


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    values, clips = zip(*_by_question(rows).values(), strict=True)
    return _with_interval(values, clips)


def _with_interval(values: Sequence[float], clips: Sequence[str]) -> dict[str, Any]:
    """The mean with its interval, which the questions about one clip do not have."""
    none = {"low": None, "high": None} if len(set(clips)) == 1 else {}
    return dataclasses.asdict(mean_over(values, clips)) | none


def _median(values: Iterable[float]) -> dict[str, float]:
    return dataclasses.asdict(median_of(list(values)))


def _cost(rows: Sequence[Row], decoder: TextConfig) -> dict[str, Any]:
    """Shares kept, operations, and operations as shares of those of the uncompressed prompt."""
    if not rows:
        return {"kept": {}, "operations": {}}
    tokens, costs = [row["tokens"] for row in rows], [row["cost"] for row in rows]
    media = [each["audio"] + each["video"] for each in tokens]
    prompt = [n + each["text"] for n, each in zip(media, tokens, strict=True)]
    pairs = zip(tokens, media, strict=True)
    shares = {name: [each[name] for each in costs] for name in SHARES if name != "planned"}
    shares = {"planned": [each["planned"] / max(n, 1) for each, n in pairs]} | shares
    true = [prefill_operations(decoder, [n] * decoder.layers) for n in prompt]
    full = {
        "paper_operations": [paper_operations(decoder, [n] * decoder.layers) for n in media],
        "operations": true,
        "seats_operations": [x / 2 for x in true],
    }
    return {
        "kept": {
            name: {"mean": float(np.mean(values)), **_median(values)}
            for name, values in shares.items()
        },
        "operations": {
            name: {
                **_median(each[name] for each in costs),
                "share": _median(each[name] / n for each, n in zip(costs, counts, strict=True)),
            }
            for name, counts in full.items()
        },
        "cache bytes": _median(each["cache_bytes"] for each in costs),
    }


def markdown(summary: Summary) -> str:
    """The report of a summary."""
    run, methods = summary["run"], summary["methods"]
    title = f"Protocol {run['protocol']}, {run['dtype']}, weights {run['weights']}"
    remarks = [remark[0].upper() + remark[1:] + "." for remark in summary["remarks"]]
    benchmarks = dict.fromkeys(name for each in methods.values() for name in each["accuracy"])
    return "\n\n".join(
        [
            *(f"# {run['name']}", title, *remarks),
            *(_accuracy_section(summary, benchmark) for benchmark in benchmarks),
            _kept_section(methods),
            _operations_section(methods),
            _seconds_section(summary),
            _hardware_section(summary),
        ]
    )


def _accuracy_section(summary: Summary, benchmark: str) -> str:
    methods, first = summary["methods"], summary["first"]
    found = {name: each["accuracy"].get(benchmark) for name, each in methods.items()}
    found = {name: accuracy for name, accuracy in found.items() if accuracy}
    categories = dict.fromkeys(c for each in found.values() for c in each["categories"])
    grouped = any("mean of groups" in each for each in found.values())
    compared = len(found) > 1
    heading = ["method", "questions", *categories, "all (95 %)"]
    heading += ["mean of groups"] * grouped + [f"minus {first} (95 %)"] * compared
    unread = any(each["unread"] for each in found.values())
    heading += ["unread"] * unread
    rows = []
    for name, accuracy in found.items():
        cells = [accuracy["categories"].get(category) for category in categories]
        row = [name, str(accuracy["questions"])]
        row += [percent(cell["mean"] if cell else None) for cell in cells]
        row += [with_interval(accuracy)]
        row += [percent(accuracy.get("mean of groups"))] * grouped
        row += [difference(methods[name]["minus first"].get(benchmark))] * compared
        rows.append(row + [str(accuracy["unread"])] * unread)
    errors = sum(each["errors"] for each in found.values())
    notes = [f"{errors} rows hold an error and count as wrong."] * bool(errors)
    notes += ["Unread replies name no option, or several, and count as wrong."] * unread
    return section(f"Accuracy, {benchmark}, %", aligned_table(heading, rows), *notes)


def _kept_section(methods: dict[str, Any]) -> str:
    rows = [
        [name, *(share(each["kept"].get(key, {}).get("mean")) for key in SHARES)]
        for name, each in methods.items()
    ]
    note = (
        "Shares of the audio and video tokens that enter the decoder, mean over the questions. The "
        "mean over layers is lower for methods that prune inside the decoder."
    )
    return section("Kept", aligned_table(["method", *SHARES.values()], rows), note)


def _operations_section(methods: dict[str, Any]) -> str:
    heading = ["method"]
    for name in COUNTS.values():
        heading += [f"{name}, 10^12", "of all tokens"]
    rows = []
    for name, each in methods.items():
        row = [name]
        for key in COUNTS:
            count = each["operations"].get(key, {})
            row += [tera(count.get("median")), share(count.get("share", {}).get("median"))]
        rows.append([*row, size(each.get("cache bytes", {}).get("median"))])
    note = (
        "Medians. Eq. 9: media tokens alone and 100 decoded ones. True count: the prompt with its "
        "text, grouped-query and causal attention, three matrices, the first token's logits. "
        "SEATS: the same with a multiply-add as one."
    )
    heading.append("keys and values")
    return section("Operations and cache", aligned_table(heading, rows), note)


def _seconds_section(summary: Summary) -> str:
    rows = [
        [name, *(seconds_with_interval(each["seconds"].get(stage)) for stage in STAGES)]
        for name, each in summary["methods"].items()
    ]
    note = (
        "Medians with 95 % intervals, as if each question were asked alone. Prefill: compression, "
        "clip and question; first token: encoders and prefill; latency: all. The first clip of a "
        "shape includes compilation. "
    )
    if all(session["one by one"] for session in summary["sessions"]):
        note += "One clip at a time."
    else:
        note += (
            "Clips were prepared while questions were answered, which disturbs these times: "
            "`--one-by-one` does not."
        )
    return section("Seconds", aligned_table(["method", *STAGES], rows), note)


def _hardware_section(summary: Summary) -> str:
    lines = []
    for session in summary["sessions"]:
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        lines.append(
            f"- {session['date']}: {session['device']}, {session['cores']} cores, "
            f"{session['system']}; {versions}"
        )
    if summary["peak bytes"]:
        kind = summary["sessions"][-1]["memory"] if summary["sessions"] else "memory"
        peaks = ", ".join(f"after {name} {size(n)}" for name, n in summary["peak bytes"].items())
        lines.append(f"- Peak of the {kind}, over all clips and methods: {peaks}")
    return section("Hardware", "\n".join(lines))
