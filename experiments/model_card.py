"""``python -m experiments.model_card``: the model card of a trained small model.

Sizes come from its configuration, stages from the log of its training, and what it knows from the
answers that ``experiments.validation_accuracy`` wrote down.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from safetensors import safe_open

from experiments.small_model_export import SHARD
from experiments.validation_accuracy import Answer, report
from omnizip_jax.evaluation.markdown_tables import table

CARD = "MODEL_CARD.md"
TEXT = """# The small model

The thinker of Qwen2.5-Omni without deviation (windowed and full vision attention, sound in blocks
of 2 s, TMRoPE, biases as released), at a thousandth of its size: {parameters:,} parameters,
bfloat16, {megabytes:.1f} MB, in the released layout. transformers' own class loads this folder,
`omnizip convert` converts it, `omnizip_jax.load("small")` does both and keeps the result in a cache
folder.

{sizes}

**What it is for.** Trying the library without 10 to 20 GB of weights, and measuring what
compression costs on clips whose truth is known. It knows nothing but the clips and the questions of
`omnizip_jax.testbed`: coloured shapes, six sounds, 168 x 168 pixels (36 tokens a grid), a still or
a moving camera, 2 s to minutes, questions in the words of `testbed/clip_questions.py`. Most of the
M-RoPE sections is for time; rows and columns have the slowest turns, for nothing asks where a thing
is.

**Training.** `python -m experiments.train FOLDER --seed {seed}`, optax (Muon and Adam),
float32, Python {python}, jax {jax}. Other work may have run on the same cores:

{stages}

**What it can do.** Validation clips, which no training saw; one question of every kind that a clip
allows for. Per cent, 95 % intervals over clips. "Blind" is who always gives the commonest answer.

{goals}
"""
ANOTHER = """
**Another seed.** The same with `--seed {seed}`, for how much chance is in it:

{stages}

{goals}
"""


class Run(NamedTuple):
    """A training: its seed, its log, and what the model that came of it answers."""

    seed: int
    log: Sequence[dict[str, Any]]
    answered: Sequence[Answer]

    @classmethod
    def read(cls, folder: Path, answers: Path, seed: int) -> Run:
        log, answered = (
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (folder / "log.jsonl", answers)
        )
        return cls(seed, log, [Answer(**line) for line in answered])

    def told(self) -> dict[str, Any]:
        """What a card says of it."""
        stages, goals = stages_table(self.log), report(self.answered).strip()
        return {"seed": self.seed, "stages": stages, "goals": goals}


def sizes_table(config: dict[str, Any]) -> str:
    """The parts of the model, from ``config.json``."""
    thinker = config["thinker_config"]
    vision, audio, text = (thinker[f"{name}_config"] for name in ("vision", "audio", "text"))
    head = text["hidden_size"] // text["num_attention_heads"]
    sections = ", ".join(map(str, text["rope_scaling"]["mrope_section"]))
    rows = [
        (
            "vision",
            f"{vision['depth']} layers of {vision['hidden_size']}, {vision['num_heads']} heads; "
            "windowed, then full",
        ),
        (
            "audio",
            f"{audio['encoder_layers']} layers of {audio['d_model']}, "
            f"{audio['encoder_attention_heads']} heads",
        ),
        (
            "decoder",
            f"{text['num_hidden_layers']} layers of {text['hidden_size']}, "
            f"{text['num_attention_heads']} heads of {head}, feed-forward "
            f"{text['intermediate_size']}, M-RoPE sections {sections}",
        ),
        ("tokenizer", "every word of the questions and every answer is one token"),
    ]
    return "\n".join(["| part | size |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def stages_table(log: Sequence[dict[str, Any]]) -> str:
    """Steps and time of every stage, and the share of right answers at its end.

    Seconds begin anew whenever a run goes on; they are summed.
    """
    rows: dict[str, list[str]] = {}
    spent: dict[str, int] = {}
    last: dict[str, int] = {}
    for line in log:
        name, seconds = line["stage"], line["seconds"]
        since = seconds - last.get(name, 0)
        spent[name] = spent.get(name, 0) + (since if since >= 0 else seconds)
        last[name] = seconds
        known = [f"{line[key]:.1%}" if key in line else "-" for key in ("answers", *_names(log))]
        rows[name] = [name, str(line["step"]), str(spent[name]), *known]
    return table(
        ["stage", "steps", "seconds", "its own answers", *_names(log)], list(rows.values())
    )


def _names(log: Sequence[dict[str, Any]]) -> list[str]:
    return [key for key in ("easy", "hard", "moving", "long") if any(key in line for line in log)]


def model_card(released: Path, run: Run, others: Sequence[Run] = ()) -> str:
    """The text of the card; ``others`` are trainings of which no weights are kept."""
    with safe_open(released / SHARD, "numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    card = TEXT.format(
        parameters=sum(map(math.prod, shapes)),
        megabytes=(released / SHARD).stat().st_size / 1e6,
        sizes=sizes_table(json.loads((released / "config.json").read_text())),
        python=platform.python_version(),
        jax=jax.__version__,
        **run.told(),
    )
    return "".join([card, *(ANOTHER.format(**other.told()) for other in others)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the card of a trained small model.")
    parser.add_argument("folder", type=Path, help="that it was trained in")
    parser.add_argument("answers", type=Path, help="what `goals --results` wrote down")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beside",
        nargs=3,
        action="append",
        default=[],
        metavar=("FOLDER", "ANSWERS", "SEED"),
        help="another training, whose figures the card has too",
    )
    given = parser.parse_args()
    others = [Run.read(Path(f), Path(answers), int(seed)) for f, answers, seed in given.beside]
    released = given.folder / "released"
    card = model_card(released, Run.read(given.folder, given.answers, given.seed), others)
    (released / CARD).write_text(card)


if __name__ == "__main__":
    main()
