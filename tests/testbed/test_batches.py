"""What the training reads is what the library reads: the same windows, prompts and positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import prompt as prompts
from omnizip_jax.generate import generate
from omnizip_jax.media import load_clip
from omnizip_jax.models.params import Params
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.testbed.batches import Bank, Dialogues, Lesson, cut, reread, token_labels
from omnizip_jax.testbed.clips import DIFFICULTIES, SPEC, make_clip
from omnizip_jax.testbed.losses import init_model, read_sequence
from omnizip_jax.testbed.model import small_config, small_tokenizer
from omnizip_jax.testbed.train import make_encode

ALONE = dataclasses.replace(DIFFICULTIES["easy"], events=(1, 1), silent=(0, 1))
LESSON = Lesson(DIFFICULTIES["easy"], rounds=2, whole=True)


@pytest.fixture(scope="module")
def params():
    tokenizer = small_tokenizer()
    config = ModelConfig.from_dict(small_config(tokenizer))
    return Params(weights=init_model(config, 0), config=config, tokenizer=tokenizer)


def fake_encode(windows):
    """Embeddings that say where they come from."""
    video = np.asarray(windows.patches, np.float32)[:, :, ::4, :8]
    return video, np.asarray(windows.mel, np.float32).transpose(0, 2, 1)[:, ::4, :8]


def test_windows_are_cut_as_the_library_cuts_them():
    clip = make_clip(0, "validation")
    ours, theirs = cut(clip), load_clip(clip.arrays, SPEC).windows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), ours, theirs)


def test_clips_from_files_have_the_same_windows():
    clip = make_clip(0, "validation", windows=2)
    ours, theirs = cut(clip), reread(clip)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


def test_put_together_clips_hold_what_their_labels_say(params):
    """Each chosen token of a clip made from the bank carries the label of its source."""
    clips = [make_clip(seed, "train", windows=1, difficulty=ALONE) for seed in range(40)]
    bank = Bank(clips, fake_encode)
    random = np.random.default_rng(0)
    things = clips[7].things
    grids, sounds = bank.find(things, 1, random)  # pyright: ignore[reportGeneralTypeIssues]
    for slot, grid in enumerate(grids):
        clip = clips[grid // 2]
        labels = token_labels(clip)
        np.testing.assert_array_equal(bank.labels["colour"][grid], labels["colour"][grid % 2])
        assert {(t.colour, t.shape) for t in clip.things if t.slot == grid % 2} == {
            (t.colour, t.shape) for t in things if t.slot == slot
        }
    heard = [
        {(t.slot, t.sound, t.long) for t in c if t.sound} for c in (things, bank.things[sounds[0]])
    ]
    assert heard[0] == heard[1]


def _heard(things):
    return {(thing.slot, thing.sound, thing.long) for thing in things if thing.sound}


def test_dialogues_ask_in_the_chat_template_and_learn_only_answers(params):
    bank = Bank([make_clip(seed, "train") for seed in range(3)], fake_encode)
    batch = Dialogues(bank, params.tokenizer, params.config).draw(
        np.random.default_rng(0), LESSON, 4
    )
    for text, answer in zip(batch.text, batch.answer, strict=True):
        words = params.tokenizer.decode(text)
        question = words.split("<|vision_eos|>")[1].split("<|im_end|>")[0]
        prompt = prompts.build(params.tokenizer, params.config, question, audio=True, video=True)
        np.testing.assert_array_equal(text[: len(prompt.suffix)], prompt.suffix)
        np.testing.assert_array_equal(batch.prefix, prompt.prefix)
        learned = [params.tokenizer.decode(text[1:][answer[:-1] == i]) for i in (1, 2)]
        assert all(turn.endswith("<|im_end|>") and len(turn.split("<")[0]) > 1 for turn in learned)
        assert words.count("assistant\n" + learned[0] + "\n") >= 1


def test_the_training_reads_a_clip_as_generate_does(params):
    """The same first token, from the same clip and question, on both ways."""
    weights = params.weights
    clip = make_clip(0, "validation")
    bank = Bank([clip], make_encode(weights, params.config))
    batch = Dialogues(bank, params.tokenizer, params.config).draw(
        np.random.default_rng(1), LESSON, 1
    )
    question = params.tokenizer.decode(batch.text[0]).split("<|vision_eos|>")[1].split("<")[0]
    logits = jax.jit(read_sequence, static_argnums=2)(weights, batch, params.config)[0][0]
    at = int(np.flatnonzero(batch.answer[0] == 1)[0])
    only = Params(
        weights={k: v for k, v in weights.items() if k != "heads"},
        config=params.config,
        tokenizer=params.tokenizer,
    )
    answer = generate(only, clip.arrays, question, compression=None, max_new_tokens=1, spec=SPEC)
    assert answer.token_ids[0] == int(jnp.argmax(logits[at]))
