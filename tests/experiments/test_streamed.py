"""A clip as a stream chooses it."""

import jax
import numpy as np

from experiments.streamed import Streamed
from omnizip_jax.compression import OmniZipConfig, Surprise
from tests.compression import loops

KEY = jax.random.key(0)


def test_equals_the_steps_of_a_stream():
    windows = loops.encoded_clip(2)
    for method in (Surprise(keep=0.3), OmniZipConfig(keep=0.3)):
        whole = Streamed(method=method)
        chosen = loops.select(whole, windows)
        steps = loops.stream(method, windows)
        np.testing.assert_array_equal(chosen.audio_keep, steps.audio_keep)
        np.testing.assert_array_equal(chosen.video_keep, steps.video_keep)
        kept = chosen.audio_keep.sum() + chosen.video_keep.sum()
        assert kept <= whole.plan(*loops.sizes(windows)).total
