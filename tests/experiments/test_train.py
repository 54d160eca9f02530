"""Training uses the library's decoder and resumes after a stop."""

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

from experiments.accuracy_questions import KINDS
from experiments.train import CURRICULUM, Stage, train
from experiments.training_batches import CLASSES, MAX_WINDOWS, BatchSpec, DecoderBatch
from experiments.training_clips import all_audio_content
from experiments.training_losses import decode_dialogues
from omnizip_jax.models.decoder import Decoder, KVCache
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.synthetic_clips import COLOURS, DIFFICULTIES

ALONE = dataclasses.replace(DIFFICULTIES["easy"], events=(1, 1), silent=(0, 0))
SHORT = BatchSpec(24 * 2 + 2, dialogues=1, windows=(2, 2), kinds=("colour of sound",), system="")


def _dialogues(config: ModelConfig, slots: int, count: int) -> DecoderBatch:
    """Two clips of random tokens, the second one shorter, and three dialogues about each."""
    random = np.random.default_rng(0)
    prefix, turn = 5, 9
    return DecoderBatch(
        prefix=np.arange(prefix),
        media=random.standard_normal((2, slots, config.text.hidden)).astype(np.float32),
        count=np.array([slots, count]),
        positions=random.integers(0, 300, (2, 3, prefix + slots)),
        next_position=np.array([400, 350]),
        labels={name: np.zeros((2, slots), int) for name in CLASSES},
        text=random.integers(0, 400, (2, 3, turn)),
        answer=np.ones((2, 3, turn), int),
        kind=np.zeros((2, 3), int),
        evidence=np.zeros((2, 3, slots), bool),
    )


@pytest.mark.slow  # compiles a step of training
@pytest.mark.parametrize("slots", [20, 700])
def test_training_equals_the_librarys_decoder(small, slots):
    """Every dialogue is decoded as if it alone followed the clip without its padding."""
    config, weights, count = small.config, small.weights, slots - 7
    batch = _dialogues(config, slots, count)
    logits, states, _ = jax.jit(decode_dialogues, static_argnums=2)(weights, batch, config)
    decoder = Decoder(config.text).bind({"params": weights["text"]})
    for clip, dialogue, used in ((0, 1, slots), (1, 2, count)):
        prefix, turn = len(batch.prefix), batch.text.shape[-1]
        tokens = (batch.prefix, batch.text[clip, dialogue])
        before, after = (decoder.embed(jnp.asarray(x)) for x in tokens)
        x = jnp.concatenate([before, batch.media[clip, :used], after])
        follows = batch.next_position[clip] + np.maximum(np.arange(turn) - 1, 0)
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
    batches = (SHORT, dataclasses.replace(SHORT, tokens=100, clips=3))
    curriculum = (Stage("encoders", 2, 1e-3), Stage("decoder", 4, 1e-3, batches, 1.0))
    settings = {"curriculum": curriculum, "training_clips": 30, "validation_clips": 2, "every": 2}

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


def test_training_clips_have_every_audio_content():
    """Each of six sounds, short or long or none, in each of the two seconds of a window."""
    heard = set()
    for objects in all_audio_content(np.random.default_rng(0), 2, 120):
        assert all(t.colour in COLOURS for t in objects)
        for window in range(4):
            own = [t for t in objects if t.sound and t.second // 2 == window]
            heard.add(frozenset((t.second % 2, t.sound, t.long) for t in own))
    assert len(heard) == 13 * 13


def test_attention_to_evidence_adds_up_and_excludes_padding(small):
    config, weights, slots = small.config, small.weights, 20
    read = jax.jit(decode_dialogues, static_argnums=2)
    batch = _dialogues(config, slots, 13)
    odd = np.broadcast_to(np.arange(slots) % 2 == 1, batch.evidence.shape)
    whole, one, other = (
        np.asarray(read(weights, batch.replace(evidence=evidence), config).evidence_attention)
        for evidence in (odd | ~odd, odd, ~odd)
    )
    assert whole.shape == (2, 3, 9, config.text.heads, config.text.layers)
    np.testing.assert_allclose(one + other, whole, atol=1e-6)
    assert np.all(one > 0) and np.all(whole < 1)  # the prompt has a share as well
    padding = np.broadcast_to(np.arange(slots) >= 13, batch.evidence.shape)
    assert not np.any(read(weights, batch.replace(evidence=padding), config).evidence_attention[1])


def test_the_curriculum_is_consistent_with_the_clips():
    """Clips of every specification exist, and its questions fit any of them."""
    for stage in CURRICULUM:
        for spec in stage.batches:
            assert 1 <= spec.windows[0] <= spec.windows[1] <= MAX_WINDOWS
            assert set(spec.kinds or ()) <= set(KINDS)
            assert spec.rounds <= 4  # one object with a sound allows for more kinds


@pytest.mark.slow
def test_a_short_run_learns_an_easy_question(tmp_path, monkeypatch):
    """Clips have one object with a sound; the question is about its colour."""
    monkeypatch.setattr("experiments.training_clips.TRAINING_DIFFICULTIES", (ALONE,))
    monkeypatch.setattr("experiments.train.validate", lambda *_: {})
    curriculum = (
        Stage("encoders", 60, 1.2e-2),
        Stage("decoder", 120, 1e-2, (SHORT,), 1.0),
    )
    train(tmp_path, curriculum, training_clips=80, validation_clips=2, every=60)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["answers"] >= 0.9
