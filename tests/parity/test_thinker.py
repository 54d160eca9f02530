"""A whole prompt, encoders to greedy tokens, against transformers with equal weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.prompts import build
from omnizip_jax.inference.api import read
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import begin, finish
from omnizip_jax.inference.generation import run as complete
from tests.conftest import clip_of

CLIPS = {
    "whole_windows": ([2, 2], [200, 200]),
    "partial_tail": ([2, 2, 1], [200, 200, 77]),
    "audio_ends_early": ([2, 2, 2], [200, 40, 0]),
    "video_ends_early": ([2, 0, 0], [200, 200, 131]),
    "short_audio_tail": ([2, 2], [200, 40]),
    "no_audio": ([2, 1], [0, 0]),
    "no_video": ([0, 0], [200, 55]),
}


def run(params, windows, question, new_tokens):
    """Full tokens from given windows; logits of the first token, and greedy tokens."""
    audio = windows is not None and bool(np.any(windows.mel_length))
    video = windows is not None and bool(np.any(windows.grid_mask))
    asked = build(params.tokenizer, params.config, question, audio=audio, video=video)
    context = read(params, None if windows is None else clip_of(windows), None)
    reply = begin(params, context, question, SamplingParams(new_tokens))
    logits = np.asarray(reply.decode_state.logits)
    answer, _ = finish(params, complete(params, reply))
    text = len(asked.prefix) + len(asked.suffix)
    counts = dataclasses.replace(answer.counts, text=text)
    return asked, logits, list(answer.token_ids), counts


# The mixed conversation of test_conversation.py has clips of one modality.
FAST = ("partial_tail", "audio_ends_early", "video_ends_early")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CLIPS],
)
def test_clip(name, params, thinker, random_windows):
    windows = random_windows(*CLIPS[name])
    asked, logits, tokens, counts = run(params, windows, "What happens?", 12)
    inputs = thinker.inputs(windows, asked)
    assert counts.media + counts.text == inputs["input_ids"].shape[1]
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    assert tokens == thinker.greedy(inputs, 12, params.end_tokens)


def test_text_alone(params, thinker):
    asked, logits, tokens, _ = run(params, None, "Who are you?", 12)
    inputs = thinker.inputs(None, asked)
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    assert tokens == thinker.greedy(inputs, 12, params.end_tokens)


def test_frames_further_apart(params, thinker, random_windows):
    """A capped clip: 1.5 s per grid, so that windows hold one or two grids."""
    windows = random_windows([2, 1, 1], [200, 200, 200])
    times = np.array([[0, 37], [25, 0], [12, 0]], np.int32)  # 0, 1.5, 3 and 4.5 s
    windows = windows.replace(grid_time=times)
    asked, logits, _, _ = run(params, windows, "What happens?", 1)
    inputs = thinker.inputs(windows, asked, seconds_per_grid=1.5)
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
