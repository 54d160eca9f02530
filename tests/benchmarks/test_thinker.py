"""The export of our parameters and inputs to transformers, at a size that takes seconds."""

import numpy as np

from benchmarks.bench import Bench
from benchmarks.clip import FULL, NoiseClip
from benchmarks.peers.thinker import Thinker


def test_transformers_comes_to_the_same_logits():
    clip = NoiseClip(Bench("tiny", windows=1))
    thinker = Thinker(clip.weights, clip.config)
    theirs = thinker.first_token(thinker.inputs(clip.windows, clip.prompt))
    ours = clip.prefill(FULL)(clip.encoded).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
