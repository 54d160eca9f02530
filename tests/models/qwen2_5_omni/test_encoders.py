"""What methods may want of the encoders beyond embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.presets import PRESETS, random_weights
from omnizip_jax.compression import Seats, VisionZip
from omnizip_jax.models.qwen2_5_omni.encoders import encode_window, encode_windows

CONFIG = PRESETS["tiny"].model


def test_attention_of_the_vision_encoder_only_where_it_is_wanted(random_windows):
    weights = random_weights(CONFIG, jnp.dtype(jnp.float32))
    windows = random_windows([2, 1, 0, 2], [200, 133, 200, 0])
    plain = encode_windows(weights, windows, config=CONFIG)
    assert plain.vision is None
    asked = encode_windows(weights, windows, config=CONFIG, wants=VisionZip.wants)
    np.testing.assert_allclose(asked.video, plain.video, atol=1e-5)
    mask, vision = asked.video_mask, asked.vision
    assert vision.keys.shape == (*mask.shape, CONFIG.vision.head_dim)
    assert np.all(np.asarray(vision.received)[mask] > 0) and not np.any(vision.received[~mask])
    tokens = mask.sum(-1)  # every token gives away one
    np.testing.assert_allclose(vision.received.sum(-1), tokens, rtol=1e-4)
    one = encode_window(weights, jax.tree.map(lambda x: x[1], windows), CONFIG, wants=Seats.wants)
    np.testing.assert_allclose(one.vision.received, vision.received[1], atol=1e-4)
    for method in (VisionZip(keep=0.4), Seats(keep=0.2)):
        chosen = method.select(asked, jax.random.key(0))
        kept = chosen.audio_keep.sum() + chosen.video_keep.sum()
        counts = asked.audio.token_mask.sum(-1), asked.video_mask.sum((1, 2))
        assert kept == method.bound(*map(np.asarray, counts))
