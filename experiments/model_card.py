"""``python -m experiments.model_card``: write the model card of a trained small model.

Sizes come from its configuration, stages from the training log, and accuracy from the results file
of ``experiments.validation_accuracy``.
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

from experiments.markdown import table
from experiments.small_model_export import SHARD
from experiments.validation_accuracy import Answer, report

CARD = "MODEL_CARD.md"
TEXT = """# The small model

The architecture of the Qwen2.5-Omni thinker (windowed and full vision attention, audio in blocks of
2 s, TMRoPE, biases as released) with five decoder layers and 36-token grids.
{parameters:,} parameters, bfloat16, {megabytes:.1f} MB, in the released layout: transformers' own
class loads this folder, `omnizip convert` converts it, `omnizip_jax.load("small")` converts it once
into a cache folder and loads it.

{sizes}

**Purpose.** Trying the library without 10 to 20 GB of weights, and measuring the accuracy of
compression methods on clips with known content. It answers only questions about the clips of
`omnizip_jax.testbed`: coloured shapes, six sounds, 168 x 168 pixels (36 tokens per grid), a static
or moving camera, 2 s to minutes, in the words of `testbed/clip_questions.py`. Most of the M-RoPE
sections is for time, because no question is about the position of an object.

**Training.** `python -m experiments.train FOLDER --seed {seed}`, optax (Muon and Adam),
float32, Python {python}, jax {jax}. Other processes may have used the same cores:

{stages}

**Accuracy.** Validation clips, one question of every kind that a clip allows for. Percent, 95 %
intervals over clips. "Commonest answer" is the accuracy of always giving it.

{goals}
"""
ANOTHER = """
**Another seed.** The same training with `--seed {seed}`, to show the variation between seeds:

{stages}

{goals}
"""


class Run(NamedTuple):
    """A training run: seed, log, and validation answers of the trained model."""

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

    def fields(self) -> dict[str, Any]:
        """The run's fields of the card's text."""
        stages, goals = stages_table(self.log), report(self.answered).strip()
        return {"seed": self.seed, "stages": stages, "goals": goals}


def sizes_table(config: dict[str, Any]) -> str:
    """Table of the parts of the model, from ``config.json``."""
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
    """Table of steps and seconds of every stage, and the accuracy at its end.

    A resumed run starts its seconds at 0; they are summed.
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
        ["stage", "steps", "seconds", "training answers", *_names(log)], list(rows.values())
    )


def _names(log: Sequence[dict[str, Any]]) -> list[str]:
    return [key for key in ("easy", "hard", "moving", "long") if any(key in line for line in log)]


def model_card(released: Path, run: Run, others: Sequence[Run] = ()) -> str:
    """Text of the card; ``others`` are runs whose weights are not kept."""
    with safe_open(released / SHARD, "numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    card = TEXT.format(
        parameters=sum(map(math.prod, shapes)),
        megabytes=(released / SHARD).stat().st_size / 1e6,
        sizes=sizes_table(json.loads((released / "config.json").read_text())),
        python=platform.python_version(),
        jax=jax.__version__,
        **run.fields(),
    )
    return "".join([card, *(ANOTHER.format(**other.fields()) for other in others)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the card of a trained small model.")
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("answers", type=Path, help="file of `validation_accuracy --results`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beside",
        nargs=3,
        action="append",
        default=[],
        metavar=("FOLDER", "ANSWERS", "SEED"),
        help="another training to include",
    )
    given = parser.parse_args()
    others = [Run.read(Path(f), Path(answers), int(seed)) for f, answers, seed in given.beside]
    released = given.folder / "released"
    card = model_card(released, Run.read(given.folder, given.answers, given.seed), others)
    (released / CARD).write_text(card)


if __name__ == "__main__":
    main()
