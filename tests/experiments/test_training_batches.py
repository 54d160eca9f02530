"""Training batches have the same windows, prompts and positions as the library."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.prompts import build
from experiments.accuracy_questions import KINDS
from experiments.batched_answers import SUFFIX
from experiments.training_batches import MAX_TURN, BatchSampler, BatchSpec
from experiments.training_clips import EncodedClips, encoder_function, token_labels
from experiments.training_losses import decode_dialogues
from omnizip_jax.inference.api import generate
from omnizip_jax.testbed.clip_questions import NAMES, NUMBERS, all_questions
from omnizip_jax.testbed.synthetic_clips import (
    COLOURS,
    DIFFICULTIES,
    SOUNDS,
    SPEC,
    draw_objects,
    make_clip,
)

ALONE = dataclasses.replace(DIFFICULTIES["easy"], events=(1, 1), silent=(0, 1))
SPEC_OF_ROUNDS = BatchSpec(488, clips=4, dialogues=2, rounds=2, unchanged=True)


@pytest.fixture(scope="module")
def params(small):
    return small


def fake_encode(windows):
    """Embeddings that identify their source."""
    video = np.asarray(windows.patches, np.float32)[:, :, ::4, :8]
    return video, np.asarray(windows.mel, np.float32).transpose(0, 2, 1)[:, ::4, :8]


def test_combined_clips_have_the_content_of_their_labels(params):
    """Each token of a combined clip has the label of its source."""
    clips = [make_clip(seed, "train", windows=1, difficulty=ALONE) for seed in range(40)]
    bank = EncodedClips(clips, fake_encode)
    random = np.random.default_rng(0)
    objects = clips[7].objects
    grids, sounds = bank.combine(objects, 1, random)
    for second, grid in enumerate(grids):
        clip = clips[grid // 2]
        labels = token_labels(clip)
        np.testing.assert_array_equal(bank.labels["colour"][grid], labels["colour"][grid % 2])
        assert {(t.colour, t.shape) for t in clip.objects if t.second == grid % 2} == {
            (t.colour, t.shape) for t in objects if t.second == second
        }
    heard = [
        {(t.second, t.sound, t.long) for t in c if t.sound}
        for c in (objects, bank.objects[sounds[0]])
    ]
    assert heard[0] == heard[1]


def _heard(objects):
    return {(obj.second, obj.sound, obj.long) for obj in objects if obj.sound}


def test_unavailable_content_is_left_out_or_rejected():
    bank = EncodedClips(
        [make_clip(seed, "train", windows=1, difficulty=ALONE) for seed in (0, 1)], fake_encode
    )
    known = bank.objects[0]
    other = dataclasses.replace(known[0], second=1 - known[0].second, sound="none such")
    assert bank.available(known) == known
    assert other not in bank.available((*known, other))
    with pytest.raises(ValueError, match="encode more clips"):
        bank.combine((other,), 1, np.random.default_rng(0))


def test_dialogues_follow_the_chat_template_and_only_answers_are_targets(params):
    bank = EncodedClips([make_clip(seed, "train") for seed in range(3)], fake_encode)
    sampler = BatchSampler([(DIFFICULTIES["easy"], bank)], params.tokenizer, params.config)
    batch = sampler.draw(np.random.default_rng(0), SPEC_OF_ROUNDS)
    rows = zip(*(x.reshape(-1, x.shape[-1]) for x in (batch.text, batch.answer)), strict=True)
    for (text, answer), kind in zip(rows, batch.kind.ravel(), strict=True):
        words = params.tokenizer.decode(text)
        question = words.split("<|vision_eos|>")[1].split("<|im_end|>")[0]
        prompt = build(params.tokenizer, params.config, question, audio=True, video=True)
        np.testing.assert_array_equal(text[: len(prompt.suffix)], prompt.suffix)
        np.testing.assert_array_equal(batch.prefix, prompt.prefix)
        learned = [params.tokenizer.decode(text[1:][answer[:-1] == i]) for i in (1, 2)]
        assert all(turn.endswith("<|im_end|>") and len(turn.split("<")[0]) > 1 for turn in learned)
        assert words.count("assistant\n" + learned[0] + "\n") >= 1
        asked = [q for t in bank.objects for q in all_questions(t, seconds=8) if q.text == question]
        assert {q.kind for q in asked} == {KINDS[kind]}


def test_every_answer_to_every_kind_of_question_fits(params):
    """Turns are never longer than their maximum."""
    tokenizer, config = params.tokenizer, params.config
    objects = draw_objects(np.random.default_rng(1), DIFFICULTIES["long"], 150)
    for question in all_questions(objects, seconds=300):
        prompt = build(tokenizer, config, question.text, audio=True, video=True)
        assert len(prompt.suffix) <= SUFFIX and len(prompt.suffix) + 2 <= MAX_TURN
        assert len(tokenizer.encode(question.answer)) == 1


def test_only_consistent_clips_are_used_unchanged(params):
    clips = [make_clip(seed, "train", windows=windows) for seed, windows in enumerate((1, 2, 4))]
    bank = EncodedClips(clips, fake_encode, consistent=2)
    sampler = BatchSampler([(DIFFICULTIES["easy"], bank)], params.tokenizer, params.config)
    counts = sampler.draw(np.random.default_rng(0), BatchSpec(500, clips=30, unchanged=True)).count
    assert set(counts.tolist()) == {122, 244}


def test_evidence_contains_the_answer(params):
    """Evidence has the sound or colour of the answer; counts end with it."""
    clip = make_clip(3, "train", DIFFICULTIES["long"], windows=12)
    bank = EncodedClips([clip], fake_encode)
    sampler = BatchSampler([(DIFFICULTIES["long"], bank)], params.tokenizer, params.config)
    lesson = BatchSpec(12 * 122, clips=1, dialogues=60, unchanged=True)
    batch = sampler.draw(np.random.default_rng(0), lesson)
    asked = {question.text: question for question in all_questions(clip.objects, seconds=24)}
    sounds, colours, found = batch.labels["sound"][0], batch.labels["colour"][0], set()
    for text, kind, evidence in zip(batch.text[0], batch.kind[0], batch.evidence[0], strict=True):
        question = asked[
            params.tokenizer.decode(text).split("<|vision_eos|>")[1].split("<|im_end|>")[0]
        ]
        heard = {SOUNDS[sound - 1] for sound in sounds[evidence] if sound}
        if question.kind == "sound of colour":
            assert heard == {question.answer}
        elif question.kind == "silent":
            assert (question.answer == "yes") == (not heard)
        elif question.kind in ("count", "times"):
            label = "number" if question.kind == "count" else "time"
            assert {NUMBERS[n] for n in batch.labels[label][0][evidence]} == {question.answer}
            assert question.kind == "count" or NAMES[heard.pop()] in question.text
        elif question.kind == "heard when":
            assert (question.answer == "no") == (not heard)
            assert all(NAMES[sound] in question.text for sound in heard)
        elif question.kind == "seen when":
            seen = {list(COLOURS)[colour - 1] for colour in colours[evidence & (sounds == 0)]}
            assert (question.answer == "no") == (not seen)
            assert all(colour in question.text for colour in seen)
        elif question.kind == "count when" and "first" in question.text:
            numbers = {NUMBERS[n] for n in batch.labels["different"][0][evidence]}
            assert numbers == ({question.answer} if heard else set())
        elif question.kind == "count when":
            assert NUMBERS[len(heard)] == question.answer
        else:
            assert not evidence.any()
        found.add(KINDS[kind])
    assert {"sound of colour", "silent", "times", "heard when", "seen when", "count when"} <= found


@pytest.mark.parametrize("all_audio", [False, True])
def test_sampled_tokens_keep_positions_and_labels(params, all_audio):
    bank = EncodedClips([make_clip(0, "train")], fake_encode)
    sampler = BatchSampler([(DIFFICULTIES["easy"], bank)], params.tokenizer, params.config)
    whole = BatchSpec(500, clips=1, unchanged=True)
    few = dataclasses.replace(whole, tokens=230, all_audio=all_audio)
    full, fewer = (sampler.draw(np.random.default_rng(0), lesson) for lesson in (whole, few))
    assert full.count == [488] and fewer.count == [230]
    assert not np.any(full.media[:, 488:]) and not np.any(full.labels["colour"][:, 488:])
    start = len(full.prefix)

    def described(batch):
        """Positions, values and labels of every token without padding."""
        parts = [batch.positions[0, :, start:].T, batch.media[0]]
        parts += [labels[0, :, None] for labels in batch.labels.values()]
        return list(map(tuple, np.concatenate(parts, axis=1)[: batch.count[0]].tolist()))

    order = described(full)
    places = [order.index(token) for token in described(fewer)]
    assert places == sorted(places)
    if all_audio:
        audio = np.arange(488) % 122 >= 72
        assert set(np.flatnonzero(audio)) <= set(places)


@pytest.mark.slow
def test_training_and_generate_agree(params):
    """The same clip and question give the same first token."""
    weights = params.weights
    clip = make_clip(0, "validation")
    bank = EncodedClips([clip], encoder_function(weights, params.config))
    sampler = BatchSampler([(DIFFICULTIES["easy"], bank)], params.tokenizer, params.config)
    batch = sampler.draw(
        np.random.default_rng(1), dataclasses.replace(SPEC_OF_ROUNDS, tokens=500, clips=1)
    )
    row = batch.text[0, 1]
    question = params.tokenizer.decode(row).split("<|vision_eos|>")[1].split("<")[0]
    logits = jax.jit(decode_dialogues, static_argnums=2)(weights, batch, params.config).logits[0, 1]
    at = int(np.flatnonzero(batch.answer[0, 1] == 1)[0])
    answer = generate(params, clip.arrays, question, compression=None, max_new_tokens=1, spec=SPEC)
    assert answer.token_ids[0] == int(jnp.argmax(logits[at]))
