"""After a warm-up, clips of those lengths compile nothing."""

from __future__ import annotations

import numpy as np

import omnizip_jax
from omnizip_jax import WindowSpec
from omnizip_jax.inference.decode import generate_tokens
from omnizip_jax.inference.prefill import prefill_clip
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows

PROGRAMS = (encode_windows, prefill_clip, generate_tokens)


def test_nothing_compiles_after_a_warm_up(params):
    spec = WindowSpec(grid_slots=16)
    report = omnizip_jax.warmup(params, [3, 4], size=(64, 36), max_new_tokens=9, spec=spec)
    stages = ("encoders", "compression and prefill", "generation")
    assert list(report) == [f"{stage}, {s} s" for s in (3, 4) for stage in stages]
    before = [program._cache_size() for program in PROGRAMS]
    assert all(before)  # it ran them all
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (16, 36, 64, 3), dtype=np.uint8)
    sound = rng.standard_normal(4 * 16000).astype(np.float32) * 0.1
    video = (frames, 4.0, sound, 16000)
    omnizip_jax.generate(params, video, "Why is that so?", max_new_tokens=9, spec=spec)
    assert [program._cache_size() for program in PROGRAMS] == before
