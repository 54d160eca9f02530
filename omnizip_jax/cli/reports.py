"""``omnizip questions`` and ``omnizip report``: what comes before an evaluation, and after it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omnizip_jax.evaluation.dataset_readers import BENCHMARKS, read_benchmark
from omnizip_jax.evaluation.markdown_tables import lined_up
from omnizip_jax.evaluation.paper_comparison import side_by_side
from omnizip_jax.evaluation.question_file import write_questions
from omnizip_jax.evaluation.result_files import write_whole
from omnizip_jax.evaluation.summary import summarise

BESIDE = ([".times"], [".early"])  # what lies beside rows and ends in .jsonl, too


def convert_benchmark(name: str, annotations: Path, videos: Path | None, out: Path) -> None:
    """Write a benchmark's questions, and say what was found.

    Raises:
        ValueError: it is not there, or not of its form.
        OSError: ``out`` cannot be written.
    """
    questions = read_benchmark(name, annotations, videos)
    write_questions(questions, out)
    clips = {question["video"] for question in questions}
    missing = sum(not Path(clip).is_file() for clip in clips)
    print(f"{len(questions)} questions about {len(clips)} videos: {out}")
    if missing:
        print(f"{missing} of the videos are not there; --videos names their folder")
    print(f"the paper reads at most {BENCHMARKS[name].frames} frames of each: --max-frames")


def print_report(runs: Sequence[Path], out: Path | None) -> None:
    """Runs side by side, printed or written.

    Raises:
        ValueError: one of them is no run, or ``out`` cannot be written.
    """
    runs = [run for run in runs if run.suffixes[-2:-1] not in BESIDE]  # as `runs/*.jsonl` has them
    text = lined_up(side_by_side([summarise(run) for run in runs]))
    if out is None:
        print(text)
    else:
        write_whole(out, text + "\n")
        print(out, file=sys.stderr)
