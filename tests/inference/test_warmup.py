"""After a warm-up, clips of those lengths compile nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

import omnizip_jax
from omnizip_jax import OmniZipConfig, WindowSpec
from omnizip_jax.compression import FastV, QuestionGuided, Seats
from omnizip_jax.inference.decode import generate_tokens
from omnizip_jax.inference.prefill import prefill_clip
from omnizip_jax.models.qwen2_5_omni.encoders import encode_windows

PROGRAMS = (encode_windows, prefill_clip, generate_tokens)


SPEC = WindowSpec(grid_slots=16)


def video(seconds):
    """A clip of random frames with sound."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (4 * seconds, 36, 64, 3), dtype=np.uint8)
    sound = rng.standard_normal(16000 * seconds).astype(np.float32) * 0.1
    return frames, 4.0, sound, 16000


@pytest.mark.parametrize(
    ("method", "longest"),
    [
        (OmniZipConfig(), 64),
        pytest.param(OmniZipConfig(), 256, marks=pytest.mark.slow),
        pytest.param(FastV(), 256, marks=pytest.mark.slow),
        pytest.param(Seats(), 256, marks=pytest.mark.slow),
        pytest.param(QuestionGuided(keep=0.3), 256, marks=pytest.mark.slow),
    ],
)
def test_nothing_compiles_after_a_warm_up(params, method, longest):
    settings = {"compression": method, "max_new_tokens": 9, "spec": SPEC}
    report = omnizip_jax.warmup(params, [3, 4], size=(64, 36), question_tokens=longest, **settings)
    stages = ("encoders", "compression and prefill", "generation")
    assert list(report) == [f"{stage}, {s} s" for s in (3, 4) for stage in stages]
    before = [program._cache_size() for program in PROGRAMS]
    assert all(before)  # it ran them all
    lengths = set()
    for seconds in (3, 4):
        for words in (1, 5, 20, 40):
            question = "Why? " * words
            answer = omnizip_jax.generate(params, video(seconds), question, **settings)
            lengths.add(answer.counts.text)
            if longest == 64 and words == 5:
                break
    assert longest == 64 or max(lengths) > 100
    assert [program._cache_size() for program in PROGRAMS] == before


@pytest.mark.parametrize("seconds", ["x", 0, -1.0, math.nan, math.inf, None, True, [2, "3"], 1e9])
def test_lengths_are_checked(params, seconds):
    with pytest.raises(
        ValueError, match=r"seconds must be lengths of clips above 0 and up to \d+ s"
    ):
        omnizip_jax.warmup(params, seconds)


@pytest.mark.parametrize(
    "settings",
    [{"size": 64}, {"size": (64, 0)}, {"question_tokens": 0}, {"audio": 1}, {"spec": 3}],
    ids=str,
)
def test_settings_are_checked(params, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        omnizip_jax.warmup(params, 2, **settings)


def test_a_stage_after_the_last_layer_is_refused_before_the_clip_is_read(params):
    for run in (
        lambda: omnizip_jax.generate(params, "no_such.mp4", "?", compression=FastV(after=27)),
        lambda: omnizip_jax.warmup(params, 2, compression=FastV(after=27)),
    ):
        with pytest.raises(ValueError, match="after=27 of 28 layers is layer 4 in a decoder of 4"):
            run()
