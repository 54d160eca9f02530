"""``python -m omnizip_jax.testbed.evaluate``: what compression costs, on clips never trained on.

Every method answers the same questions about the same test clips, one question of each family for
each clip, and is compared with all tokens pair by pair. A run that was stopped goes on where it
was, one difficulty per process if you like; a run of both writes tables and curves beside the
results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from omnizip_jax.checkpoint.load import load
from omnizip_jax.compression import Method, OmniZipConfig
from omnizip_jax.generate import generate
from omnizip_jax.models.params import Params
from omnizip_jax.testbed.clips import DIFFICULTIES, SPEC, Split
from omnizip_jax.testbed.measure import CLIP_WINDOWS, MEASURED, measure_to, quiz
from omnizip_jax.testbed.rows import SHARES, all_rows
from omnizip_jax.testbed.tables import (
    Rows,
    accuracy_table,
    kinds_table,
    plot_curves,
    short_table,
    summarise,
)

SUMMARY = "accuracy.json"
SHORT = (0.35, 0.25)  # shares of the short table


def rows_of(params: Params) -> dict[str, Method]:
    """Every method at every share, for the testbed's clips."""
    audio, video = [SPEC.audio_slots] * CLIP_WINDOWS, [SPEC.video_slots] * CLIP_WINDOWS
    return all_rows(np.array(audio), np.array(video), params.config.text.layers)


def write_tables(summary: dict[str, Rows], clips: int, folder: Path) -> None:
    """The summary, its tables and its curves."""
    (folder / SUMMARY).write_text(json.dumps({"clips": clips, "rows": summary}) + "\n")
    parts = []
    for difficulty, rows in summary.items():
        parts.append(f"## {difficulty.capitalize()} clips\n\n{accuracy_table(rows)}")
        for share in SHARES:
            parts.append(
                f"### {difficulty.capitalize()} clips by kind of question, {share:.0%}\n\n"
                f"{kinds_table(rows, share)}"
            )
    (folder / "accuracy_tables.md").write_text(
        f"# Accuracy: whole tables\n\n{clips} test clips of each difficulty; what the columns mean "
        "is said in [accuracy.md](accuracy.md).\n\n" + "\n\n".join(parts) + "\n"
    )
    plot_curves(summary).savefig(folder / "accuracy.png", dpi=90)


def compare_files(
    params: Params, clips: int, difficulty: str, split: Split = "test"
) -> dict[str, float]:
    """Accuracy of ``generate`` on arrays, and on the same clips written to mp4 files."""
    right: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(range(clips), unit="clip"):
            clip, questions = quiz(seed, split, difficulty)
            sources = {"arrays": clip.arrays, "mp4": clip.write(Path(folder) / "clip.mp4")}
            for (kind, source), question in itertools.product(sources.items(), questions):
                for name, method in {"all tokens": None, "35 %": OmniZipConfig(keep=0.35)}.items():
                    answer = generate(
                        params,
                        source,
                        question.text,
                        compression=method,
                        max_new_tokens=4,
                        spec=SPEC,
                    )
                    same = answer.text.strip() == question.answer
                    right.setdefault(f"{kind}, {name}", []).append(same)
    return {name: float(np.mean(values)) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What compression costs, on test clips.")
    parser.add_argument(
        "--checkpoint", default="small", help="converted checkpoint, or the one that comes along"
    )
    parser.add_argument("--clips", type=int, default=1000, help="of each difficulty")
    parser.add_argument("--files", type=int, default=0, help="of them, also read from mp4 files")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--difficulty", choices=list(DIFFICULTIES), help="only this one")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of every answer, and tables"
    )
    arguments = parser.parse_args()
    params = load(arguments.checkpoint, dtype="float32")
    methods, summary = rows_of(params), {}
    for name in [arguments.difficulty] if arguments.difficulty else MEASURED:
        file = arguments.results / f"{name}.jsonl"
        measured = measure_to(file, params, methods, arguments.clips, name, arguments.split)
        summary[name] = summarise(measured, methods, params.config)
        if arguments.files:
            files = compare_files(params, arguments.files, name, arguments.split)
            print(f"{name}, {arguments.files} clips through generate:")
            print(", ".join(f"{kind} {share:.1%}" for kind, share in files.items()), flush=True)
    if not arguments.difficulty:
        write_tables(summary, arguments.clips, arguments.results)
    print(short_table(summary, SHORT))


if __name__ == "__main__":
    main()
