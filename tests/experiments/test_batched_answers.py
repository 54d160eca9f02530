"""Batched answers equal those of ``generate`` for every kind of method."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.batched_answers import answers, prepare
from omnizip_jax.compression import AllTokens, FastV, OmniZipConfig, Seats
from omnizip_jax.inference.api import generate
from omnizip_jax.media import load_clip
from omnizip_jax.testbed.synthetic_clips import SPEC, make_clip

QUESTIONS = ("Which sound came first?", "How many sounds were there?")


@pytest.fixture(scope="module")
def asked(small):
    clips = [make_clip(seed, "validation") for seed in range(2)]
    windows = [load_clip(clip.arrays, SPEC).windows for clip in clips]
    wants = frozenset({"vision"})
    return clips, prepare(small, windows, [QUESTIONS] * len(clips), wants)


@pytest.mark.slow  # compiles the small model with and without stages
@pytest.mark.parametrize(
    "method",
    [AllTokens(), OmniZipConfig(keep=0.35), FastV(keep=0.35), Seats(keep=0.35)],
    ids=lambda method: type(method).__name__,
)
def test_answers_are_those_of_generate(small, asked, method):
    clips, about = asked
    seeds = [3, 4]
    answered = answers(small, about, method, seeds)
    for clip, seed, tokens, kept in zip(clips, seeds, answered.tokens, answered.kept, strict=True):
        said = [
            generate(small, clip.arrays, question, compression=method, max_new_tokens=1, seed=seed)
            for question in QUESTIONS
        ]
        assert [answer.token_ids for answer in said] == [(token,) for token in tokens]
        counts, trace, layers = said[0].counts, said[0].compression, small.config.text.layers
        parts = [(counts.audio_kept, counts.video_kept)]
        for stage in method.stages(layers):
            depths = trace.audio_depth, trace.video_depth
            parts.append(tuple(int((d * layers > stage.after + 0.5).sum()) for d in depths))
        np.testing.assert_array_equal(kept, parts)


@pytest.mark.slow
def test_what_exceeds_its_bound_is_an_error(small, asked):
    class Greedy(AllTokens):
        def plan(self, audio_counts, video_counts):
            return super().plan(audio_counts, video_counts)._replace(total=60)

    with pytest.raises(ValueError, match="more tokens than its bound"):
        answers(small, asked[1], Greedy(), [0, 0])
