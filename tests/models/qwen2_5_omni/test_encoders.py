"""Encoder features that methods request beyond embeddings."""

import jax
import numpy as np
import pytest

from omnizip_jax.compression import Seats, VisionZip
from omnizip_jax.inference.prefill import ENCODE_BLOCK
from omnizip_jax.inference.sequence import pad_windows
from omnizip_jax.models.qwen2_5_omni.encoders import encode_window, encode_windows


def test_the_vision_encoders_attention_only_if_requested(params, random_windows):
    weights, config = params.weights, params.config
    windows = pad_windows(random_windows([2, 1, 0, 2], [200, 133, 200, 0]), ENCODE_BLOCK)
    plain = encode_windows(weights, windows, config=config)
    assert plain.vision is None
    asked = encode_windows(weights, windows, config=config, wants=VisionZip.wants)
    np.testing.assert_allclose(asked.video, plain.video, atol=1e-5)
    mask, vision = asked.video_mask, asked.vision
    assert vision.keys.shape == (*mask.shape, config.vision.head_dim)
    assert np.all(np.asarray(vision.received)[mask] > 0) and not np.any(vision.received[~mask])
    tokens = mask.sum(-1)  # each token distributes 1
    np.testing.assert_allclose(vision.received.sum(-1), tokens, rtol=1e-4)


@pytest.mark.slow
def test_methods_select_from_the_requested_features(params, random_windows):
    weights, config = params.weights, params.config
    windows = pad_windows(random_windows([2, 1, 0, 2], [200, 133, 200, 0]), ENCODE_BLOCK)
    asked = encode_windows(weights, windows, config=config, wants=VisionZip.wants)
    encode = jax.jit(encode_window, static_argnames=("config", "wants"))
    window = jax.tree.map(lambda x: x[1], windows)
    one = encode(weights, window, config=config, wants=Seats.wants)
    np.testing.assert_allclose(one.vision.received, asked.vision.received[1], atol=1e-4)
    for method in (VisionZip(keep=0.4), Seats(keep=0.2)):
        counts = asked.audio.token_mask.sum(-1), asked.video_mask.sum((1, 2))
        budget = method.plan(*map(np.asarray, counts))
        chosen = method.select(asked, budget, jax.random.key(0))
        assert chosen.audio_keep.sum() + chosen.video_keep.sum() == budget.total
