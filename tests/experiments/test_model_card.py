"""The model card matches its input files."""

from __future__ import annotations

import json

from experiments.measured_methods import FULL
from experiments.model_card import Run, model_card, stages_table
from experiments.validation_accuracy import Answer
from omnizip_jax.checkpoint.small_model import RELEASED

LOG = [
    {"stage": "encoders", "step": 100, "seconds": 40},
    {"stage": "encoders", "step": 150, "seconds": 60},
    {"stage": "encoders", "step": 200, "seconds": 25},  # resumed
    {"stage": "all tokens", "step": 100, "seconds": 90, "answers": 0.75, "easy": 0.5},
]


def test_seconds_are_summed_over_resumed_runs():
    rows = stages_table(LOG).splitlines()
    assert rows[0] == "| stage | steps | seconds | training answers | easy |"
    assert rows[2] == "| encoders | 200 | 85 | - | - |"
    assert rows[3] == "| all tokens | 100 | 90 | 75.0% | 50.0% |"


def test_the_card_counts_and_describes():
    answered = [Answer("easy", 4, clip, "seen", "yes", {FULL: True}) for clip in range(3)]
    card = model_card(RELEASED, Run(1, LOG, answered), [Run(2, LOG[:2], answered[:2])])
    assert "2,050,208 parameters" in card and "4.1 MB" in card and "--seed 1" in card
    assert "5 layers of 128, 4 heads of 32, feed-forward 384, M-RoPE sections 10, 3, 3" in card
    own, another = card.split("**Another seed.**")
    assert "| easy | 8 s | 3 | 100.0 (100.0 to 100.0) |" in own and "--seed 2" in another
    assert "| easy | 8 s | 2 | 100.0 (100.0 to 100.0) |" in another


def test_a_run_is_read(tmp_path):
    answered = [Answer("easy", 4, 0, "seen", "yes", {FULL: True})]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    (tmp_path / "answers.jsonl").write_text(json.dumps(answered[0]._asdict()) + "\n")
    assert Run.read(tmp_path, tmp_path / "answers.jsonl", 3) == Run(3, LOG, answered)
