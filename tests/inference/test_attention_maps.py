"""Where the decoder attends, against transformers' attention matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.prompts import build
from omnizip_jax.compression import AllTokens, FastV, RandomTokens, Seats
from omnizip_jax.inference.api import generate
from omnizip_jax.inference.attention_maps import compute_attention_maps
from omnizip_jax.types import TokenKind
from tests.conftest import clip_of

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def clip(random_windows):
    return clip_of(random_windows([2, 2, 1], [200, 200, 77]))


@pytest.fixture(scope="module")
def whole(params, clip):
    return compute_attention_maps(params, clip, QUESTION, AllTokens())


def test_rows_are_those_of_transformers(params, thinker, clip, whole):
    config = params.config
    prompt = build(params.tokenizer, config, QUESTION, audio=True, video=True)
    inputs = thinker.inputs(clip.windows, prompt)
    with torch.no_grad():
        matrices = thinker.model(**inputs, output_attentions=True).attentions
    rows = np.stack([layer[0, :, -1].mean(0).numpy() for layer in matrices])
    ids = inputs["input_ids"][0].numpy()
    media = (ids == config.audio_token) | (ids == config.video_token)
    np.testing.assert_allclose(whole.media, rows[:, media], atol=1e-5)
    np.testing.assert_allclose(whole.text, rows[:, ~media].sum(1), atol=1e-5)
    kinds = np.where(ids == config.audio_token, TokenKind.AUDIO, TokenKind.VIDEO)[media]
    assert whole.kind.tolist() == kinds.tolist()
    sizes = [2 * 15 + 50, 2 * 15 + 50, 15 + 19]
    assert whole.window.tolist() == np.repeat(range(3), sizes).tolist()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(RandomTokens(), marks=pytest.mark.slow),
        pytest.param(FastV(after=14), marks=pytest.mark.slow),
        pytest.param(Seats(keep=0.3), marks=pytest.mark.slow),
    ],
)
def test_only_what_a_layer_reads_is_attended_to(params, clip, whole, method):
    found = compute_attention_maps(params, clip, QUESTION, method)
    np.testing.assert_allclose(np.nansum(found.media, 1) + found.text, 1, atol=1e-5)
    answer = generate(params, clip, QUESTION, compression=method, max_new_tokens=1)
    layers = params.config.text.layers
    read = ~np.isnan(found.media)
    trace = answer.compression
    for kind, keep, depth in (
        (TokenKind.AUDIO, trace.audio_keep, trace.audio_depth),
        (TokenKind.VIDEO, trace.video_keep, trace.video_depth),
    ):
        expected = int(keep.sum()) * layers if depth is None else round(float(depth.sum()) * layers)
        assert read[:, found.kind == kind].sum() == expected
    if isinstance(method, FastV):  # its first layers read everything
        np.testing.assert_allclose(found.media[:2], whole.media[:2], atol=1e-6)
        assert read[2:].sum() < whole.media[2:].size
