"""Eq. 2 against the whole matrix in float64."""

import jax
import numpy as np

from omnizip_jax.compression.omnizip_audio import attention_scores


def test_scores_equal_the_whole_matrix():
    rng = np.random.default_rng(0)
    windows, frames, heads, width = 3, 9, 2, 4
    queries, keys = 3 * rng.standard_normal((2, windows, frames, heads, width))
    mask = np.arange(frames) < np.array([8, 8, 5])[:, None]
    scores = jax.jit(attention_scores)(np.float32(queries), np.float32(keys), mask)

    q, k = queries[mask], keys[mask]
    logits = np.einsum("qnh,knh->nqk", q, k) / width**0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    received = (weights / weights.sum(-1, keepdims=True)).mean((0, 1))
    assert np.isclose(received.sum(), 1)
    expected = [received[i : i + 2].mean() for i in range(0, len(received) - 1, 2)]
    token = np.arange(frames // 2) < np.array([4, 4, 2])[:, None]
    np.testing.assert_allclose(np.asarray(scores)[token], expected, rtol=1e-5)
    assert not np.any(np.asarray(scores)[~token])


def test_a_clip_without_audio_has_scores_of_zero():
    x = np.ones((2, 4, 2, 4), np.float32)
    assert not np.any(attention_scores(x, x, np.zeros((2, 4), bool)))
