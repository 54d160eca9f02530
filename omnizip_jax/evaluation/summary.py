"""What a run comes to: accuracy, what was kept, what it took. Read from its files alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnizip_jax.evaluation import operations
from omnizip_jax.evaluation.confidence_intervals import mean_over, median_of
from omnizip_jax.evaluation.dataset_readers import BENCHMARKS
from omnizip_jax.evaluation.result_files import read_rows, read_run, read_times
from omnizip_jax.models.config import TextConfig

Row = dict[str, Any]
OWN = "questions"  # the benchmark of rows that name none
STAGES = ("media", "encoders", "prefill", "first token", "decoding", "latency")


def summarise(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A run in numbers, as its report has them.

    Args:
        path: of the rows, ``NAME.jsonl``.

    Returns:
        What was run, the machines, the peaks of memory, and for each method: questions, errors,
        accuracy by benchmark and category with intervals, differences from the first method, shares
        kept (planned and measured), operations by three counts, seconds by stage.

    Raises:
        ValueError: it is no results file, or holds no row.
    """
    run, rows, times = read_run(path), read_rows(path), read_times(path)
    if not rows:
        raise ValueError(f"{path}: no row in it yet")
    by_method = {name: [row for row in rows if row["method"] == name] for name in run["methods"]}
    by_method = {name: own for name, own in by_method.items() if own}
    first = next(iter(by_method))
    timed = [line for line in times if "peak bytes" in line]
    methods = {}
    for name, own in by_method.items():
        mine = [line["seconds"] for line in timed if line["method"] == name]
        methods[name] = {
            "settings": run["methods"][name],
            "questions": len({row["id"] for row in own}),
            "seeds": len({row["seed"] for row in own}),
            "errors": sum(row["error"] is not None for row in own),
            "accuracy": _accuracy(own),
            "minus first": {} if name == first else _difference(own, by_method[first]),
            **_cost(own, run),
            "seconds": {stage: _median(line[stage] for line in mine) for stage in STAGES if mine},
        }
    return {
        "run": {"name": Path(path).stem, **run},
        "sessions": [line["session"] for line in times if "session" in line],
        "peak bytes": {
            stage: max(line["peak bytes"][stage] for line in timed)
            for stage in ("encoders", "prefill", "decoding")
            if timed
        },
        "first": first,
        "methods": methods,
    }


def _accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """By benchmark: over all its questions, and by category."""
    out: dict[str, Any] = {}
    for benchmark, own in _split(_scored(rows), "benchmark", OWN).items():
        categories = {
            category: _mean(part) for category, part in _split(own, "category", None).items()
        }
        known = BENCHMARKS.get(benchmark)
        grouped = {}
        if known is not None and known.grouped:
            grouped = {"mean of groups": _mean_of_groups(own)}
        out[benchmark] = _mean(own) | {"categories": categories} | grouped
    return out


def _mean_of_groups(rows: Sequence[Row]) -> float:
    """The mean over groups of the mean over their categories."""
    means = [
        np.mean([_mean(part)["mean"] for part in _split(own, "category", "").values()])
        for own in _split(rows, "group", "").values()
    ]
    return float(np.mean(means))


def _difference(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    """Question by question, by benchmark."""
    others = _by_question(_scored(reference))
    out = {}
    for benchmark, own in _split(_scored(rows), "benchmark", OWN).items():
        mine = {key: value for key, value in _by_question(own).items() if key in others}
        if mine:
            values = [right - others[key][0] for key, (right, _) in mine.items()]
            clips = [clip for _, clip in mine.values()]
            out[benchmark] = dataclasses.asdict(mean_over(values, clips))
    return out


def _scored(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["correct"] is not None]


def _by_question(rows: Sequence[Row]) -> dict[str, tuple[float, str]]:
    """How often each question was answered right, over the seeds, and its clip."""
    right: dict[str, list[bool]] = {}
    clips: dict[str, str] = {}
    for row in rows:
        right.setdefault(row["id"], []).append(row["correct"])
        clips[row["id"]] = row["video"]
    return {key: (float(np.mean(values)), clips[key]) for key, values in right.items()}


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    values, clips = zip(*_by_question(rows).values(), strict=True)
    return dataclasses.asdict(mean_over(values, clips))


def _median(values: Iterable[float]) -> dict[str, float]:
    return dataclasses.asdict(median_of(list(values)))


def _split(rows: Sequence[Row], column: str, default: str | None) -> dict[str, list[Row]]:
    """Rows by a column; those without it under the default, or left out where that is None."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        key = row.get(column, default)
        if key is not None:
            out.setdefault(str(key), []).append(row)
    return out


def _cost(rows: Sequence[Row], run: dict[str, Any]) -> dict[str, Any]:
    """Shares kept and operations, of the rows that were answered."""
    answered = [row for row in rows if row["error"] is None]
    if not answered:
        return {"kept": {}, "operations": {}}
    decoder = TextConfig(**run["decoder"])
    tokens, costs = [row["tokens"] for row in answered], [row["cost"] for row in answered]
    media = [count["audio"] + count["video"] for count in tokens]
    planned = [count["planned"] / max(total, 1) for count, total in zip(tokens, media, strict=True)]
    shares = ("kept", "audio", "video", "kept_with_text", "by_layer", "by_layer_with_text")
    kept = {"planned": planned} | {name: [cost[name] for cost in costs] for name in shares}
    whole = [total + count["text"] for count, total in zip(tokens, media, strict=True)]
    true = [operations.prefill_operations(decoder, [n] * decoder.layers) for n in whole]
    full = {
        "paper_operations": [
            operations.paper_operations(decoder, [n] * decoder.layers) for n in media
        ],
        "operations": true,
        "seats_operations": [x / 2 for x in true],
    }
    counts = {
        name: {
            **_median(cost[name] for cost in costs),
            "share": _median(cost[name] / all_ for cost, all_ in zip(costs, every, strict=True)),
        }
        for name, every in full.items()
    }
    return {
        "kept": {
            name: {"mean": float(np.mean(values)), **_median(values)}
            for name, values in kept.items()
        },
        "operations": counts,
        "cache bytes": _median(cost["cache_bytes"] for cost in costs),
    }
