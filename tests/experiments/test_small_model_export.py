"""The small model's files: what is exported converts to the same weights, and loads."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.small_model_export import answers, export, small_config, small_tokenizer
from experiments.training_losses import init_model
from omnizip_jax import load
from omnizip_jax.checkpoint import convert
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig


def test_every_answer_is_one_token():
    tokenizer = small_tokenizer()
    for answer in answers():
        (token,) = tokenizer.encode(answer)
        assert tokenizer.decode([token]) == answer


@pytest.mark.slow
def test_exported_weights_convert_to_themselves(tmp_path):
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    weights = {k: v for k, v in init_model(config, 0).items() if k != "heads"}
    released = export(weights, tmp_path / "released")
    convert.convert(released, tmp_path / "checkpoint")
    params = load(tmp_path / "checkpoint", dtype="float32")
    assert params.config == config
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2**-8),
        weights,
        params.weights,
    )
    assert sum(f.stat().st_size for f in released.iterdir()) < 15e6
