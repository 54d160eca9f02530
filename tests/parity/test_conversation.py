"""Several clips, texts and turns in one conversation, against transformers on equal weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnizip_jax import ask, converse, read
from omnizip_jax.inference.chat_template import DEFAULT_SYSTEM
from omnizip_jax.inference.decode import end_tokens
from omnizip_jax.inference.generation import begin
from tests.conftest import clip_of

BOTH = ([2, 2], [200, 200])
SHORT = ([2, 1], [200, 77])
SILENT = ([2, 1], [0, 0])
SOUND = ([0, 0], [200, 55])

CONVERSATIONS = {
    "with_sound": ["First this:", BOTH, "and then that:", SHORT],
    "without_sound": ["First this:", SILENT, "and then that:", SILENT],
    "sound_alone": ["Listen:", SOUND, "and again:", SOUND],
    "mixed": [SILENT, "then", BOTH, "then a sound", SOUND],
    "side_by_side": [SOUND, BOTH, SHORT],
}
QUESTION, TOKENS = "What happens?", 6


def shown(parts, random_windows):
    """The parts with windows of their own in place of their lengths."""
    return [
        part if isinstance(part, str) else random_windows(*part, seed=i)
        for i, part in enumerate(parts)
    ]


def rendered(params, turns):
    """Token ids of the template, by its own tokenizer; windows are placeholders."""

    def content(part):
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind = "video" if np.any(part.grid_mask) else "audio"
        return {"type": kind, kind: ""}

    messages = [{"role": "system", "content": [{"type": "text", "text": DEFAULT_SYSTEM}]}]
    for i, turn in enumerate(turns):
        role = ("user", "assistant")[i % 2]
        messages.append({"role": role, "content": [content(part) for part in turn]})
    text = params.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return params.tokenizer(text, add_special_tokens=False)["input_ids"]


def given(parts):
    return [part if isinstance(part, str) else clip_of(part) for part in parts]


# What sound alone has, the mixed conversation has too.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "sound_alone" else ())
        for name in CONVERSATIONS
    ],
)
def test_clips_and_texts(name, params, thinker, random_windows):
    parts = shown(CONVERSATIONS[name], random_windows)
    clips = [part for part in parts if not isinstance(part, str)]
    inputs = thinker.conversation(rendered(params, [[*parts, QUESTION]]), clips)
    if name in ("with_sound", "without_sound", "sound_alone"):  # what transformers does at once
        whole = inputs | {"use_audio_in_video": name == "with_sound"}
        torch.testing.assert_close(thinker.positions(whole), inputs["position_ids"])

    context = read(params, given(parts), None)
    logits = np.asarray(begin(params, context, QUESTION).decode_state.logits)
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    expected = thinker.continued(inputs, TOKENS, end_tokens(params.tokenizer))
    answer, _ = ask(params, context, QUESTION, max_new_tokens=TOKENS)
    assert list(answer.token_ids) == expected
    whole = converse(params, [*given(parts), QUESTION], compression=None, max_new_tokens=TOKENS)
    assert list(whole.token_ids) == expected
    assert whole.counts.media + whole.counts.text == inputs["input_ids"].shape[1]
    assert answer.counts.media == whole.counts.media


def test_a_dialogue(params, thinker, random_windows):
    """Kept turns are what transformers reads when it is given all of the conversation."""
    windows = random_windows(*SHORT)
    context, turns = read(params, clip_of(windows), None), [[windows]]
    for question in ("What happens?", "And then?", "Why?"):
        turns[-1].append(question)
        inputs = thinker.conversation(rendered(params, turns), [windows])
        logits = np.asarray(begin(params, context, question).decode_state.logits)
        np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
        answer, context = ask(params, context, question, keep=True, max_new_tokens=TOKENS)
        expected = thinker.continued(inputs, TOKENS, end_tokens(params.tokenizer))
        assert list(answer.token_ids) == expected
        turns += [[answer.text], []]


def test_text_alone(params, thinker):
    context, turns = read(params, None, None), [[]]
    for question in ("Who are you?", "Are you sure?"):
        turns[-1].append(question)
        inputs = thinker.conversation(rendered(params, turns), [])
        answer, context = ask(params, context, question, keep=True, max_new_tokens=TOKENS)
        expected = thinker.continued(inputs, TOKENS, end_tokens(params.tokenizer))
        assert list(answer.token_ids) == expected
        turns += [[answer.text], []]
