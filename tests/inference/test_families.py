"""Each family from encoders to answer: a stream equals the clip, snapshots, full caches."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from omnizip_jax import (
    OmniZipConfig,
    ask,
    feed,
    feed_block,
    generate,
    init_stream,
    read,
    restore,
    save,
)
from omnizip_jax.compression import METHODS, AllTokens
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import begin
from tests.conftest import clip_of, make_windows

QUESTION = "What happens?"
BLOCK = 4  # windows that Qwen3-Omni's audio encoder reads together


@pytest.fixture(scope="module", params=["tiny_qwen3", pytest.param("tiny", marks=pytest.mark.slow)])
def params(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def spec(params):
    return dataclasses.replace(params.config.spec, grid_slots=16)


@pytest.fixture(scope="module")
def windows(spec):
    """Eight windows; the last block is not full of audio."""
    return make_windows([2] * 7 + [1], [200] * 7 + [77], spec=spec)


def block(windows, begin, count=BLOCK):
    return jax.tree.map(lambda x: x[begin : begin + count], windows)


def stream_of(params, spec, windows, method, capacity=2048):
    context = init_stream(params, method, capacity=capacity, text_slots=192, spec=spec)
    for start in range(0, len(windows.mel_length), BLOCK):
        context = feed_block(params, context, block(windows, start))
    return context


def logits(params, context):
    return np.asarray(begin(params, context, QUESTION, SamplingParams(4)).decode_state.logits)


@pytest.mark.parametrize(
    ("method", "causal"),
    [
        (OmniZipConfig(), OmniZipConfig(causal=True)),
        pytest.param(AllTokens(), AllTokens(), marks=pytest.mark.slow),
    ],
    ids=["omnizip", "all"],
)
def test_a_stream_equals_the_clip(params, spec, windows, method, causal, tmp_path):
    """With whole blocks of audio; and a snapshot of the stream equals the stream."""
    clip = read(params, clip_of(windows, spec), causal)
    context = stream_of(params, spec, windows, method)
    assert int(context.cache.length) == int(clip.cache.length)
    np.testing.assert_allclose(logits(params, context), logits(params, clip), atol=1e-4)
    save(context, tmp_path / "stream")
    answer, _ = ask(params, context, QUESTION, max_new_tokens=4)
    again, _ = ask(params, restore(params, tmp_path / "stream"), QUESTION, max_new_tokens=4)
    assert answer.token_ids == again.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["recent", "fading"])
def test_a_full_cache_goes_on(params, spec, windows, memory):
    """More than the cache holds: windows leave, the rest moves, and answers follow."""
    context = init_stream(
        params, OmniZipConfig(), memory=memory, capacity=640, text_slots=192, spec=spec
    )
    lengths = []
    for i in range(24):
        context = feed(params, context, jax.tree.map(lambda x, i=i: x[i % 7], windows))
        lengths.append(int(context.cache.length))
    assert min(np.diff(lengths)) < 0 and max(lengths) <= 640
    answer, _ = ask(params, context, QUESTION, max_new_tokens=4)
    assert len(answer.token_ids) == 4 and np.isfinite(logits(params, context)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers(params, spec, windows, name):
    answer = generate(
        params, clip_of(windows, spec), QUESTION, compression=METHODS[name](), max_new_tokens=2
    )
    assert 0 < answer.counts.kept <= answer.counts.audio + answer.counts.video
