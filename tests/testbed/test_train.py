"""Training: through the library's decoder, and able to go on after a stop."""

from __future__ import annotations

import dataclasses
import json

import flax.serialization
import jax
import numpy as np
import pytest

from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.rope import text_positions
from omnizip_jax.models.text import Decoder, KVCache
from omnizip_jax.testbed.batches import Lesson
from omnizip_jax.testbed.clips import DIFFICULTIES
from omnizip_jax.testbed.losses import hidden_states, init_model
from omnizip_jax.testbed.model import small_config, small_tokenizer
from omnizip_jax.testbed.train import Stage, train

ALONE = dataclasses.replace(DIFFICULTIES["easy"], events=(1, 1), silent=(0, 0))
SHORT = Lesson(
    ALONE,
    windows=2,
    rounds=1,
    video_tokens=6,
    audio_tokens=12,
    kinds=("colour of sound",),
    system="",
)


def test_the_training_runs_the_librarys_decoder():
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    weights = init_model(config, 0)["text"]
    x = jax.random.normal(jax.random.key(1), (20, config.text.hidden))
    positions = text_positions(3, 20)
    ours = jax.jit(hidden_states, static_argnums=3)(weights, x, positions, config)[-1]
    decoder, cache = Decoder(config.text), KVCache.empty(config.text, 20)
    theirs = decoder.apply({"params": weights}, x, positions, cache, fresh=True)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    curriculum = (Stage("encoders", 2, 1, 1e-3), Stage("decoder", 4, 4, 1e-3, SHORT, 1.0))
    settings = {"curriculum": curriculum, "bank_clips": 60, "validation_clips": 20, "every": 2}
    train(tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnizip_jax.testbed.train.validate", _stop_at(2, Stop))
        with pytest.raises(Stop):
            train(folder, **settings)
    train(folder, **settings)
    one, two = (
        flax.serialization.msgpack_restore((f / "state.msgpack").read_bytes())
        for f in (tmp_path / "whole", folder)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)
    assert (folder / "released" / "model.safetensors").is_file()
    assert (folder / "curves.png").is_file()


def _stop_at(call, error):
    calls = []

    def validate(*_):
        calls.append(1)
        if len(calls) == call:
            raise error
        return 0.0

    return validate


@pytest.mark.slow
def test_a_short_run_learns_an_easy_question(tmp_path):
    """One shape is seen and one sound is heard: which colour was it?"""
    curriculum = (
        Stage("encoders", 60, 4, 1.2e-2),
        Stage("decoder", 120, 8, 1e-2, SHORT, 1.0),
    )
    train(tmp_path, curriculum, bank_clips=80, validation_clips=20, every=60)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["answers"] >= 0.9
