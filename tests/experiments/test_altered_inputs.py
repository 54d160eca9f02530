"""What rows read instead of the clip as it is."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from experiments.altered_inputs import Readings, Row, live_mel
from experiments.batched_answers import encode
from experiments.reference_methods import KnownWindow, Oracle
from experiments.training_batches import cut
from omnizip_jax.compression import AllTokens
from omnizip_jax.testbed.synthetic_clips import make_clip


def test_a_stream_hears_against_the_loudest_moment_so_far():
    clip = make_clip(0, "validation", windows=2)
    later = clip.waveform * np.repeat([0.1, 1.0], 32_000).astype(np.float32)
    live, whole = live_mel(later), cut(dataclasses.replace(clip, waveform=later)).mel
    assert live.shape == whole.shape
    np.testing.assert_array_equal(live[1], whole[1])  # by then all is known
    assert live[0].min() < whole[0].min()  # a lower floor: the loud second is still to come
    np.testing.assert_array_equal(np.maximum(live[0], whole[0].min()), whole[0])


def test_only_what_a_row_asks_for_is_altered(small):
    clips, others = ([make_clip(seed, "validation", windows=1)] for seed in (0, 1))
    encoded = []

    def counted(windows):
        encoded.append(windows)
        return encode(small, windows)

    own = encode(small, [cut(clip) for clip in clips])
    readings = Readings(own, clips, lambda: others, counted)
    assert readings.of(Row(AllTokens())) is own and not encoded
    told = readings.of(Row(Oracle(keep=0.5)))
    assert isinstance(told, KnownWindow) and told.seen.sum() == (clips[0].video_objects >= 0).sum()
    theirs = encode(small, [cut(clip) for clip in others])
    deaf = readings.of(Row(AllTokens(), sound="other"))
    blind = readings.of(Row(AllTokens(), picture="other"))
    assert len(encoded) == 1
    for altered, sound, picture in ((deaf, theirs, own), (blind, own, theirs)):
        jax.tree.map(np.testing.assert_array_equal, altered.audio, sound.audio)
        np.testing.assert_array_equal(altered.video, picture.video)
    live = readings.of(Row(AllTokens(), sound="live"))
    assert len(encoded) == 2
    np.testing.assert_array_equal(live.video, own.video)
