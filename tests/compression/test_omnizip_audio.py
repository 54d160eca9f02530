"""Eq. 2 against the whole matrix in float64."""

import jax
import numpy as np
import pytest

from omnizip_jax.compression.omnizip_audio import attention_scores


@pytest.mark.parametrize("per_token", [2, 1, 3])
def test_scores_equal_the_whole_matrix(per_token):
    rng = np.random.default_rng(0)
    windows, frames, heads, width = 3, 9, 2, 4
    queries, keys = 3 * rng.standard_normal((2, windows, frames, heads, width))
    counts = np.array([8 - 8 % per_token] * 2 + [5])
    mask, tokens = np.arange(frames) < counts[:, None], frames // per_token
    score = jax.jit(attention_scores, static_argnums=3)
    scores = score(np.float32(queries), np.float32(keys), mask, tokens)

    q, k = queries[mask], keys[mask]
    logits = np.einsum("qnh,knh->nqk", q, k) / width**0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    received = (weights / weights.sum(-1, keepdims=True)).mean((0, 1))
    assert np.isclose(received.sum(), 1)
    last = len(received) - per_token
    expected = [received[i : i + per_token].mean() for i in range(0, last + 1, per_token)]
    token = np.arange(tokens) < (counts // per_token)[:, None]
    np.testing.assert_allclose(np.asarray(scores)[token], expected, rtol=1e-5)
    assert not np.any(np.asarray(scores)[~token])


def test_a_clip_without_audio_has_scores_of_zero():
    x = np.ones((2, 4, 2, 4), np.float32)
    assert not np.any(attention_scores(x, x, np.zeros((2, 4), bool), 2))
