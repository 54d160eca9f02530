"""Suite ``evaluate``: questions about files per second, against a loop over ``generate``."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import presets
from benchmarks.bouncing_clip import write_clip
from benchmarks.harness import Row
from benchmarks.run_state import Bench
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.evaluation.clip_evaluator import EvaluationSettings, Evaluator
from omnizip_jax.evaluation.dataset_runner import evaluate
from omnizip_jax.evaluation.protocols import PROTOCOLS
from omnizip_jax.evaluation.question_file import Question
from omnizip_jax.inference.api import generate

METHOD = OmniZipConfig()
CLIPS = 4
QUESTIONS = 3  # about a clip, as in VideoMME
NEW_TOKENS = 4  # a letter and its end
SIZE = (640, 360)


def run(bench: Bench) -> Iterator[Row]:
    windows = bench.windows
    params = presets.random_params(bench.config, bench.dtype, bench.weights)
    protocol = PROTOCOLS["authors"]
    with tempfile.TemporaryDirectory() as folder:
        questions = []
        for clip in range(CLIPS):
            path = Path(folder) / f"{clip}.mp4"
            write_clip(path, seconds=2 * windows, size=SIZE)
            for number in range(QUESTIONS):
                name = f"{clip}/{number}"
                words = f"What happens after the door has opened the {number + 1}. time?"
                columns = {"id": name, "video": str(path), "question": words}
                questions.append(
                    Question(name, str(path), words, ("it rains", "it snows"), "A", columns=columns)
                )
        settings = EvaluationSettings({"omnizip": METHOD}, protocol, max_new_tokens=NEW_TOKENS)
        evaluator = Evaluator(params, settings)
        bench.say(f"evaluate: {len(questions)} questions, {CLIPS} clips of {windows} windows")
        files = (Path(folder) / f"{number}.jsonl" for number in itertools.count())

        def ours() -> None:
            evaluate(evaluator, questions, next(files))

        def loop() -> None:
            for question in questions:
                generate(
                    params,
                    question.video,
                    protocol.prompt(question),
                    compression=METHOD,
                    system=protocol.system_of(question),
                    max_new_tokens=NEW_TOKENS,
                )

        timing, peer = bench.alternate(ours, loop)
    yield bench.timed(
        "evaluate.question",
        timing,
        peer,
        "a loop over generate",
        per=len(questions),
        note=f"{QUESTIONS} questions a clip of {windows} windows, files of {SIZE[0]}x{SIZE[1]}; "
        f"{len(questions) / timing.median:.3g} questions a second",
    )
