"""Tables and curves of a measurement, and the summary that both are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from omnizip_jax.answer import TokenCounts
from omnizip_jax.compression import Method
from omnizip_jax.evaluation.cost import cost_of
from omnizip_jax.evaluation.paired import mean_over
from omnizip_jax.evaluation.tables import difference, share, table
from omnizip_jax.models.families import Config
from omnizip_jax.testbed.clips import SPEC
from omnizip_jax.testbed.measure import CLIP_WINDOWS, FULL, Measurement
from omnizip_jax.testbed.questions import FAMILIES
from omnizip_jax.testbed.rows import METHODS, row_name

Summary = dict[str, Any]
Rows = dict[str, Summary]
COUNTS = ("operations", "paper_operations", "cache_bytes")  # as shares of all tokens'


def summarise(measured: Measurement, methods: Mapping[str, Method], config: Config) -> Rows:
    """Accuracy, its difference from all tokens, and cost, by method; plain numbers throughout.

    Operations and cache bytes are shares of those with all tokens. Every mean comes with
    "low" and "high", a bootstrap 95 % interval over clips; differences are paired.
    """
    out: Rows = {}
    full = measured.right[FULL].mean(1)
    kinds = sorted(set(measured.kinds.ravel().tolist()))
    for name, values in measured.right.items():
        means = values.mean(1)  # over seeds
        groups = {"all": (means.mean(1), full.mean(1))}
        groups |= {f: (means[:, i], full[:, i]) for i, f in enumerate(FAMILIES)}
        out[name] = {
            "right": {group: _mean(own) for group, (own, _) in groups.items()},
            "minus_full": {group: _mean(own - whole) for group, (own, whole) in groups.items()},
            "kinds": {
                kind: round(float(means[measured.kinds == kind].mean()), 4) for kind in kinds
            },
            "cost": _cost(config, methods.get(name, methods[FULL]), measured, name),
        }
    whole = dict(out[FULL]["cost"])
    for row in out.values():
        spent = row["cost"]
        row["cost"] |= {name: round(spent[name] / whole[name], 4) for name in COUNTS}
    return out


def _cost(config: Config, method: Method, measured: Measurement, name: str) -> dict[str, float]:
    (audio, video), *stages = np.rint(measured.kept[name]).astype(int).tolist()
    counts = TokenCounts(
        audio=CLIP_WINDOWS * SPEC.audio_slots,
        audio_kept=audio,
        video=CLIP_WINDOWS * SPEC.video_slots,
        video_kept=video,
        text=round(measured.text),
        generated=1,
    )
    spent = cost_of(config.text, method, counts, [(a, v) for a, v in stages])
    shares = ("audio", "video", "kept", "audio_by_layer", "video_by_layer", "by_layer")
    return {name: round(getattr(spent, name), 4) for name in (*shares, *COUNTS)}


def _mean(values: Float[np.ndarray, " clips"]) -> dict[str, float]:
    mean = mean_over(values.tolist(), [str(clip) for clip in range(len(values))])
    return {name: round(getattr(mean, name), 4) for name in ("mean", "low", "high")}


def accuracy_table(rows: Rows) -> str:
    """Accuracy by family, and the difference from all tokens with its interval, in Markdown."""
    heading = ["method", "kept", "layers", "operations", *FAMILIES, "all"]
    heading += [f"{FAMILIES[0]}, minus full", "all, minus full"]
    lines = []
    for name, row in rows.items():
        costs = (row["cost"][share] for share in ("kept", "by_layer", "operations"))
        right = (row["right"][group]["mean"] for group in (*FAMILIES, "all"))
        apart = (difference(row["minus_full"][group]) for group in (FAMILIES[0], "all"))
        lines.append([label(name), *map(share, (*costs, *right)), *apart])
    return table(heading, lines)


def kinds_table(rows: Rows, keep: float) -> str:
    """Accuracy by kind of question, of the references and of every method at a share."""
    kinds = list(next(iter(rows.values()))["kinds"])
    lines = [
        [label(name), *(f"{row['kinds'][kind]:.0%}" for kind in kinds)]
        for name, row in rows.items()
        if name.endswith(f"| {keep:.0%}") or " | " not in name
    ]
    return table(["method", *kinds], lines)


def short_table(by_difficulty: Mapping[str, Rows], shares: Sequence[float]) -> str:
    """Right answers of every method at a few shares, for a reader in a hurry."""
    columns = [(rows, keep) for rows in by_difficulty.values() for keep in shares]
    heading = ["method", *(f"{name}, {keep:.0%}" for name in by_difficulty for keep in shares)]

    def line(name: str, rows: Iterable[tuple[Rows, str]]) -> list[str]:
        return [name, *(share(r[n]["right"]["all"]["mean"] if n in r else None) for r, n in rows)]

    lines = [line(FULL, ((rows, FULL) for rows, _ in columns))]
    lines += [
        line(method, ((rows, row_name(method, keep)) for rows, keep in columns))
        for method in METHODS
    ]
    return table(heading, lines)


def label(name: str) -> str:
    """A row's name as a table shows it: the bar would end the cell."""
    return name.replace(" | ", ", ")


STYLES = {  # colour and marker of a method, in every picture the same
    "omnizip": ("#d1663d", "o"),
    "omnizip, published": ("#e3a06b", "s"),
    "omnizip, the paper's letter": ("#8a4a2f", "v"),
    "random": ("#777777", "x"),
    "temporal": ("#2a7f9e", "D"),
    "dycoke": ("#6aa84f", "^"),
    "visionzip": ("#9467bd", "P"),
    "evs": ("#17becf", "<"),
    "vidcom2": ("#bcbd22", ">"),
    "seats": ("#1f3b73", "*"),
    "fastv": ("#c2185b", "h"),
}


def plot_curves(by_difficulty: Mapping[str, Rows]) -> Figure:
    """Accuracy against the kept share, and against operations; bands are 95 % intervals."""
    figure = Figure(figsize=(11, 4.2 * len(by_difficulty)), layout="constrained")
    axes = figure.subplots(len(by_difficulty), 2, squeeze=False, sharey="row")
    costs = {"by_layer": "share of media tokens, mean over layers"}
    costs |= {"operations": "operations of the prefill, share of all tokens'"}
    for row, (difficulty, rows) in zip(axes, by_difficulty.items(), strict=True):
        full = rows[FULL]["right"]["all"]["mean"]
        for ax, (against, title) in zip(row, costs.items(), strict=True):
            ax.axhline(full, color="black", linewidth=0.8, linestyle=":")
            for method, (colour, marker) in STYLES.items():
                points = [p for name, p in rows.items() if name.split(" | ")[0] == method]
                points = sorted((p["cost"][against], *p["right"]["all"].values()) for p in points)
                if points:
                    x, mean, low, high = np.array(points).T
                    ax.plot(x, mean, color=colour, marker=marker, label=method, linewidth=1.3)
                    ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.set(xlabel=title, title=f"{difficulty} clips")
            ax.xaxis.set_major_formatter("{x:.0%}")
            ax.yaxis.set_major_formatter("{x:.0%}")
            ax.grid(alpha=0.25)
        row[0].set_ylabel("right answers (dotted: all tokens)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9)
    return figure
