"""A made-up answer about ten windows, for plots and for commands with a stub model."""

from __future__ import annotations

import numpy as np

from omnizip_jax.inference.generation import Answer, TokenCounts
from omnizip_jax.types import Selection
from tests.conftest import clip_of, make_windows

WINDOWS = 10
STAGES = ("media", "encoders", "prefill", "generation")


def make_answer() -> Answer:
    """Ten windows of 30 video and 50 audio tokens, half of which are kept."""
    random, clip = np.random.default_rng(0), clip_of(make_windows([2] * WINDOWS, [200] * WINDOWS))
    video = np.tile(np.arange(16) < 15, (WINDOWS, 2, 1))
    audio = np.ones((WINDOWS, 50), bool)
    keep = [mask & (random.random(mask.shape) < 0.5) for mask in (audio, video)]
    trace = Selection.of(audio, video, *keep)
    counts = TokenCounts(500, int(keep[0].sum()), 300, int(keep[1].sum()), 20, 1)
    return Answer("A door opens.", (), counts, trace, clip.sample(8), dict.fromkeys(STAGES, 0.25))
