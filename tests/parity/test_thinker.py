"""A whole prompt, encoders to greedy tokens, against transformers with equal weights."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.prompts import build
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.inference.api import read
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import begin, finish
from omnizip_jax.inference.generation import run as complete
from omnizip_jax.inference.sequence import token_counts
from omnizip_jax.models.registry import family
from tests.conftest import clip_of
from tests.parity.conftest import QWEN3

SLOW = pytest.mark.slow
CLIPS = {
    "whole_windows": ([2, 2], [200, 200]),
    "partial_tail": ([2, 2, 1], [200, 200, 77]),
    "audio_ends_early": ([2, 2, 2], [200, 40, 0]),
    "video_ends_early": ([2, 0, 0], [200, 200, 131]),
    "short_audio_tail": ([2, 2], [200, 40]),
    "two_audio_blocks": ([2] * 5, [200] * 4 + [131]),
    "no_audio": ([2, 1], [0, 0]),
    "no_video": ([0, 0], [200, 55]),
}


def run(params, windows, question, new_tokens, spec=None, method=None):
    """Tokens from given windows; logits of the first token, and greedy tokens."""
    audio = windows is not None and bool(np.any(windows.mel_length))
    video = windows is not None and bool(np.any(windows.grid_mask))
    asked = build(params.tokenizer, params.config, question, audio=audio, video=video)
    context = read(params, None if windows is None else clip_of(windows, spec), method)
    reply = begin(params, context, question, SamplingParams(new_tokens))
    logits = np.asarray(reply.decode_state.logits)
    answer, _ = finish(params, complete(params, reply))
    text = len(asked.prefix) + len(asked.suffix)
    counts = dataclasses.replace(answer.counts, text=text)
    return asked, logits, list(answer.token_ids), counts


# Of the conversations in test_conversation.py, one has clips of one modality.
FAST = ("partial_tail", "audio_ends_early", "video_ends_early")
CELLS = {"wide": (2, 8), "tall": (8, 2)}


def clips_of_models(fast: dict[str, tuple[str, ...]]):
    """Every model with every clip; those that are not in ``fast`` are slow."""
    return [
        pytest.param(
            model, name, id=f"{model}-{name}", marks=() if name in fast.get(model, ()) else SLOW
        )
        for model in ("qwen2_5", *QWEN3)
        for name in CLIPS
    ]


def window_spec(config):
    return dataclasses.replace(config.spec, grid_slots=16)


@pytest.mark.parametrize(
    ("model", "name"),
    clips_of_models({"qwen2_5": FAST}),  # test_families covers the other in the fast tier
    indirect=["model"],
)
def test_clip(model, name, random_windows):
    params, thinker = model
    spec = window_spec(params.config)
    windows = random_windows(*CLIPS[name], spec=spec)
    asked, logits, tokens, counts = run(params, windows, "What happens?", 12, spec)
    inputs = thinker.inputs(windows, asked)
    assert counts.media + counts.text == inputs["input_ids"].shape[1]
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    assert tokens == thinker.greedy(inputs, 12, params.end_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
def test_aspect_ratios(model, cells, random_windows):
    params, thinker = model
    spec = window_spec(params.config)
    windows = random_windows([2, 2, 1], [200, 200, 77], cells, spec)
    asked, logits, _, _ = run(params, windows, "What happens?", 1, spec)
    inputs = thinker.inputs(windows, asked)
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_5", *QWEN3], indirect=True)
@pytest.mark.parametrize("merge_size", [0, 3])
def test_kept_tokens(merge_size, model, random_windows):
    """A pruned prompt equals transformers fed with the kept rows at their positions."""
    params, thinker = model
    config, spec = params.config, window_spec(params.config)
    windows = random_windows(*CLIPS["partial_tail"], spec=spec)
    method = OmniZipConfig(merge_size=merge_size, anchor_ratio=0.1)
    encoded = family(config).encode_windows(params.weights, windows, config=config)
    budget = method.plan(*token_counts(windows, config))
    selection = method.select(encoded, budget, jax.random.key(0))
    asked, logits, _, counts = run(params, windows, "What happens?", 1, spec, method)
    kept = np.sum(selection.audio_keep) + np.sum(selection.video_keep)
    assert counts.kept == kept < counts.media
    expected = thinker.pruned_logits(thinker.inputs(windows, asked), windows, selection)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_5", "qwen3"], indirect=True)
def test_a_grid_wider_than_what_follows(model, random_windows):
    """Generated tokens follow the question, even where the video has greater positions."""
    params, thinker = model
    spec = dataclasses.replace(params.config.spec, grid_slots=64)
    windows = random_windows([1], [24], (1, 64), spec)
    asked, logits, tokens, _ = run(params, windows, "Why?", 12, spec)
    inputs = thinker.inputs(windows, asked)
    places = thinker.positions(inputs)[:, 0]
    assert places.max() > places[0, -1]
    np.testing.assert_allclose(logits, thinker.logits(inputs)[-1], atol=1e-4)
    assert tokens == thinker.greedy(inputs, 12, params.end_tokens)


@pytest.mark.parametrize(
    "model",
    ["qwen2_5", *(pytest.param(name, marks=SLOW) for name in QWEN3)],
    indirect=True,
)
def test_text_alone(model):
    params, thinker = model
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
