"""Export of parameters and inputs to the transformers peer."""

import numpy as np
import pytest

from benchmarks.noise_clip import FULL, NoiseClip
from benchmarks.peers.thinker import Thinker
from benchmarks.run_state import Bench


@pytest.mark.slow  # a comparison with PyTorch
def test_transformers_computes_the_same_logits():
    clip = NoiseClip(Bench("tiny", windows=1))
    thinker = Thinker(clip.params)
    theirs = thinker.first_token(thinker.inputs(clip.windows, clip.prompt))
    ours = clip.prefill(FULL)(clip.encoded).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
