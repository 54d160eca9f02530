"""``python -m experiments.quantized_accuracy``: accuracy of the small model by precision.

Every precision answers the same questions about the same test clips, so differences from float32
are paired. A stopped run resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.accuracy import measure_to, measured
from experiments.accuracy_questions import QUESTION_SETS, QuestionSet
from experiments.accuracy_results import Measurement, Results, results_header
from experiments.clip_inputs import Row
from experiments.markdown import table
from experiments.measured_methods import FULL
from omnizip_jax.checkpoint.convert import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.small_model import RELEASED
from omnizip_jax.compression import AllTokens, OmniZipConfig
from omnizip_jax.evaluation.confidence_intervals import mean_over
from omnizip_jax.evaluation.markdown_tables import difference, percent
from omnizip_jax.models.loaded_model import Params

QUESTIONS = 1000  # of each difficulty, at least
PRECISIONS = {  # dtype of a conversion, whether it quantises everything, dtype of the cache
    "float32": ("float32", False, None),
    "int8": ("int8", False, None),
    "int4": ("int4", False, None),
    "int8 cache": ("float32", False, "int8"),
    "int8, all": ("int8", True, None),
    "int4, all": ("int4", True, None),
}
ROWS = {FULL: Row(AllTokens())} | {
    f"{share:.0%}": Row(OmniZipConfig(keep=share)) for share in (0.45, 0.25)
}


def load_precision(name: str, folder: Path) -> Params:
    """The small model in a precision, converted to a folder if it is not there yet."""
    dtype, everything, cache_dtype = PRECISIONS[name]
    target = folder / name.replace(", ", "_")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(convert(RELEASED, target, dtype, quantize_all=everything))
    return load(target, dtype="float32", cache_dtype=cache_dtype)


def clips_of(questions: QuestionSet) -> int:
    """Number of clips with ``QUESTIONS`` questions."""
    return -(-QUESTIONS // len(questions.questions(0, "test")))


def compare(found: dict[str, dict[str, Measurement]]) -> str:
    """Accuracy in float32, and its difference in other precisions, with 95 % intervals."""

    def cells() -> Iterator[list[str]]:
        for difficulty, by_precision in found.items():
            base = by_precision["float32"]
            for row in ROWS:
                right = base.right[row]
                line = [f"{difficulty}, {row}", str(right.size), percent(right.mean())]
                for name in list(PRECISIONS)[1:]:
                    if name not in by_precision:
                        line.append("")
                        continue
                    change = by_precision[name].right[row].astype(float) - right
                    clips = np.repeat(np.arange(len(change)), change[0].size)
                    mean = mean_over(change.ravel().tolist(), list(map(str, clips)))
                    line.append(difference(vars(mean)))
                yield line

    return table(["clips, tokens", "questions", *PRECISIONS], list(cells()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the small model by precision.")
    parser.add_argument("--results", type=Path, default=Path("results/quantized"))
    parser.add_argument("--difficulty", choices=list(QUESTION_SETS), help="measure only this one")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="measure only this one")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Measurement]] = {difficulty: {} for difficulty in QUESTION_SETS}
    for name in PRECISIONS:
        params = load_precision(name, arguments.results / "models")
        for difficulty, questions in QUESTION_SETS.items():
            file = arguments.results / name / f"{difficulty}.jsonl"
            results = Results(file, results_header(params, questions, "test"))
            if arguments.difficulty in (None, difficulty) and arguments.precision in (None, name):
                measure_to(results, params, ROWS, questions, clips_of(questions))
            if measurement := measured(results, params, ROWS, questions, clips_of(questions)):
                found[difficulty][name] = measurement
    print(compare({name: own for name, own in found.items() if "float32" in own}))


if __name__ == "__main__":
    main()
