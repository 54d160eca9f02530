"""Training: through the library's decoder, and able to go on after a stop."""

from __future__ import annotations

# pyright: reportArgumentType=false
# Batches are made of numpy arrays; their fields are declared for the device.
import dataclasses
import json

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.small_model_export import small_config, small_tokenizer
from experiments.train import CURRICULUM, Stage, _every_content, train
from experiments.training_batches import CLASSES, MOST_WINDOWS, DecoderBatch, Lesson
from experiments.training_losses import init_model, read_dialogues
from omnizip_jax.models.decoder import Decoder, KVCache
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.clip_questions import KINDS
from omnizip_jax.testbed.synthetic_clips import COLOURS, DIFFICULTIES

ALONE = dataclasses.replace(DIFFICULTIES["easy"], events=(1, 1), silent=(0, 0))
SHORT = Lesson(24 * 2 + 2, rows=1, windows=(2, 2), kinds=("colour of sound",), system="")


def _dialogues(config: ModelConfig, slots: int, count: int) -> DecoderBatch:
    """Two clips of random tokens, the second one shorter, and three dialogues about each."""
    random = np.random.default_rng(0)
    prefix, turn = 5, 9
    return DecoderBatch(
        prefix=np.arange(prefix),
        media=random.standard_normal((2, slots, config.text.hidden)).astype(np.float32),
        count=np.array([slots, count]),
        positions=random.integers(0, 300, (2, 3, prefix + slots)),
        after=np.array([400, 350]),
        labels={name: np.zeros((2, slots), int) for name in CLASSES},
        text=random.integers(0, 400, (2, 3, turn)),
        answer=np.ones((2, 3, turn), int),
        kind=np.zeros((2, 3), int),
        tells=np.zeros((2, 3, slots), bool),
    )


@pytest.mark.parametrize("slots", [20, pytest.param(700, marks=pytest.mark.slow)])
def test_the_training_runs_the_librarys_decoder(slots):
    """Every dialogue is read as if it alone followed the clip without its padding."""
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    weights, count = init_model(config, 0), slots - 7
    batch = _dialogues(config, slots, count)
    logits, states, _ = jax.jit(read_dialogues, static_argnums=2)(weights, batch, config)
    decoder = Decoder(config.text).bind({"params": weights["text"]})
    for clip, dialogue, used in ((0, 1, slots), (1, 2, count)):
        prefix, turn = len(batch.prefix), batch.text.shape[-1]
        tokens = (batch.prefix, batch.text[clip, dialogue])
        before, after = (decoder.embed(jnp.asarray(x)) for x in tokens)
        x = jnp.concatenate([before, batch.media[clip, :used], after])
        follows = batch.after[clip] + np.maximum(np.arange(turn) - 1, 0)
        positions = np.concatenate(
            [batch.positions[clip][:, : prefix + used], np.tile(follows, (3, 1))], axis=1
        )
        cache = KVCache.empty(config.text, len(x))
        hidden, _ = decoder(x, jnp.asarray(positions), cache, fresh=True)
        theirs = decoder.logits(hidden[-turn:])
        np.testing.assert_allclose(logits[clip, dialogue], theirs, atol=2e-5)
    assert len(states) == config.text.layers


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    lessons = (SHORT, dataclasses.replace(SHORT, slots=100, clips=3))
    curriculum = (Stage("encoders", 2, 1e-3), Stage("decoder", 4, 1e-3, lessons, 1.0))
    settings = {"curriculum": curriculum, "bank_clips": 30, "validation_clips": 2, "every": 2}

    class Stop(Exception):
        pass

    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.train.validate", _stop_at(3, Stop))
        with pytest.raises(Stop):
            train(folder, **settings)
        patch.setattr("experiments.train.validate", lambda *_: {})
        train(folder, **settings)
        train(tmp_path / "whole", **settings)
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
        return {}

    return validate


def test_the_bank_has_every_sound_that_a_window_can_have():
    """Each of six sounds, short or long or none, in each of the two seconds of a window."""
    heard = set()
    for objects in _every_content(np.random.default_rng(0), 2, 120):
        assert all(t.colour in COLOURS for t in objects)
        for window in range(4):
            own = [t for t in objects if t.sound and t.second // 2 == window]
            heard.add(frozenset((t.second % 2, t.sound, t.long) for t in own))
    assert len(heard) == 13 * 13


def test_looks_add_up_and_padding_is_not_looked_at():
    config = ModelConfig.from_dict(small_config(small_tokenizer()))
    weights, slots = init_model(config, 0), 20
    read = jax.jit(read_dialogues, static_argnums=2)
    batch = _dialogues(config, slots, 13)
    odd = np.broadcast_to(np.arange(slots) % 2 == 1, batch.tells.shape)
    whole, one, other = (
        np.asarray(read(weights, batch.replace(tells=tells), config).looked)
        for tells in (odd | ~odd, odd, ~odd)
    )
    assert whole.shape == (2, 3, 9, config.text.heads, config.text.layers)
    np.testing.assert_allclose(one + other, whole, atol=1e-6)
    assert np.all(one > 0) and np.all(whole < 1)  # the prompt is looked at, too
    padding = np.broadcast_to(np.arange(slots) >= 13, batch.tells.shape)
    assert not np.any(read(weights, batch.replace(tells=padding), config).looked[1])


def test_the_curriculum_fits_what_is_drawn():
    """Every lesson's clips exist, and its questions can be asked about any of them."""
    for stage in CURRICULUM:
        for lesson in stage.lessons:
            assert 1 <= lesson.windows[0] <= lesson.windows[1] <= MOST_WINDOWS
            assert set(lesson.kinds or ()) <= set(KINDS)
            assert lesson.rounds <= 4  # one event allows for more kinds than that


@pytest.mark.slow
def test_a_short_run_learns_an_easy_question(tmp_path, monkeypatch):
    """One shape is seen and one sound is heard: which colour was it?"""
    monkeypatch.setattr("experiments.train.LOOKS", (ALONE,))
    monkeypatch.setattr("experiments.train.validate", lambda *_: {})
    curriculum = (
        Stage("encoders", 60, 1.2e-2),
        Stage("decoder", 120, 1e-2, (SHORT,), 1.0),
    )
    train(tmp_path, curriculum, bank_clips=80, validation_clips=2, every=60)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["answers"] >= 0.9
