"""Conversations of clips, texts and turns, against transformers with equal weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omnizip_jax import ask, converse, read
from omnizip_jax.inference.generation import begin
from omnizip_jax.models.registry import family
from tests.conftest import clip_of

BOTH = ([2, 2], [200, 200])
SHORT = ([2, 1], [200, 77])
VIDEO = ([2, 1], [0, 0])
AUDIO = ([0, 0], [200, 55])

CONVERSATIONS = {
    "with_audio": ["First this:", BOTH, "and then that:", SHORT],
    "without_audio": ["First this:", VIDEO, "and then that:", VIDEO],
    "audio_alone": ["Listen:", AUDIO, "and again:", AUDIO],
    "mixed": [VIDEO, "then", BOTH, "then a sound", AUDIO],
    "side_by_side": [AUDIO, BOTH, SHORT],
}
QUESTION, TOKENS = "What happens?", 6


@pytest.fixture
def spec(model):
    return dataclasses.replace(model[0].config.spec, grid_slots=16)


def with_windows(parts, spec, random_windows):
    """The parts with random windows in place of their lengths."""
    return [
        part if isinstance(part, str) else random_windows(*part, spec=spec, seed=i)
        for i, part in enumerate(parts)
    ]


def rendered(params, turns):
    """Token ids of the chat template; windows are placeholders."""

    def content(part):
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind = "video" if np.any(part.grid_mask) else "audio"
        return {"type": kind, kind: ""}

    system = family(params.config).DEFAULT_SYSTEM
    text = {"type": "text", "text": system}
    messages = [] if system is None else [{"role": "system", "content": [text]}]
    for i, turn in enumerate(turns):
        role = ("user", "assistant")[i % 2]
        messages.append({"role": role, "content": [content(part) for part in turn]})
    text = params.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return params.tokenizer(text, add_special_tokens=False)["input_ids"]


def with_clips(parts, spec):
    return [part if isinstance(part, str) else clip_of(part, spec) for part in parts]


# The mixed conversation has clips of every kind.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name != "mixed" else ())
        for name in CONVERSATIONS
    ],
)
@pytest.mark.parametrize(
    "model", ["qwen2_5", pytest.param("qwen3", marks=pytest.mark.slow)], indirect=True
)
def test_clips_and_texts(name, model, spec, random_windows):
    params, thinker = model
    parts = with_windows(CONVERSATIONS[name], spec, random_windows)
    clips = [part for part in parts if not isinstance(part, str)]
    inputs = thinker.conversation(rendered(params, [[*parts, QUESTION]]), clips)
    if name in ("with_audio", "without_audio", "audio_alone"):  # what transformers computes at once
        whole = inputs | {"use_audio_in_video": name == "with_audio"}
        torch.testing.assert_close(thinker.positions(whole), inputs["position_ids"])

    context = read(params, with_clips(parts, spec), None)
    logits = np.asarray(begin(params, context, QUESTION).decode_state.logits)
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    expected = thinker.continued(inputs, TOKENS, params.end_tokens)
    answer, _ = ask(params, context, QUESTION, max_new_tokens=TOKENS)
    assert list(answer.token_ids) == expected
    whole = converse(
        params, [*with_clips(parts, spec), QUESTION], compression=None, max_new_tokens=TOKENS
    )
    assert list(whole.token_ids) == expected
    assert whole.counts.media + whole.counts.text == inputs["input_ids"].shape[1]
    assert answer.counts.media == whole.counts.media


def test_a_dialogue(params, thinker, random_windows):
    """Kept turns equal a prefill of the whole conversation in transformers."""
    windows = random_windows(*SHORT)
    context, turns = read(params, clip_of(windows), None), [[windows]]
    for question in ("What happens?", "And then?", "Why?"):
        turns[-1].append(question)
        inputs = thinker.conversation(rendered(params, turns), [windows])
        logits = np.asarray(begin(params, context, question).decode_state.logits)
        np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
        answer, context = ask(params, context, question, keep=True, max_new_tokens=TOKENS)
        expected = thinker.continued(inputs, TOKENS, params.end_tokens)
        assert list(answer.token_ids) == expected
        turns += [[answer.text], []]


def test_text_alone(params, thinker):
    context, turns = read(params, None, None), [[]]
    for question in ("Who are you?", "Are you sure?"):
        turns[-1].append(question)
        inputs = thinker.conversation(rendered(params, turns), [])
        answer, context = ask(params, context, question, keep=True, max_new_tokens=TOKENS)
        expected = thinker.continued(inputs, TOKENS, params.end_tokens)
        assert list(answer.token_ids) == expected
        turns += [[answer.text], []]
