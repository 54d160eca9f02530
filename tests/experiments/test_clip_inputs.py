"""Windows of clips, and inputs with exchanged modalities."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from experiments.batched_answers import encode
from experiments.clip_inputs import (
    BlockInputs,
    Row,
    clip_to_windows,
    clip_to_windows_by_file,
    streaming_mel,
)
from experiments.oracle_methods import AnnotatedWindow, Oracle
from omnizip_jax.compression import AllTokens
from omnizip_jax.media import load_clip
from omnizip_jax.testbed.synthetic_clips import SPEC, make_clip


def test_streaming_audio_is_normalised_by_the_loudest_moment_so_far():
    clip = make_clip(0, "validation", windows=2)
    later = clip.waveform * np.repeat([0.1, 1.0], 32_000).astype(np.float32)
    live, whole = (
        streaming_mel(later),
        clip_to_windows(dataclasses.replace(clip, waveform=later)).mel,
    )
    assert live.shape == whole.shape
    np.testing.assert_array_equal(live[1], whole[1])  # the loudest moment is with_objects
    assert live[0].min() < whole[0].min()  # a lower floor before the loud second
    np.testing.assert_array_equal(np.maximum(live[0], whole[0].min()), whole[0])


@pytest.mark.slow  # compiles the encoders of the small model
def test_only_the_modality_of_a_row_changes(small):
    clips, others = ([make_clip(seed, "validation", windows=1)] for seed in (0, 1))
    encoded = []

    def counted(windows):
        encoded.append(windows)
        return encode(small, windows)

    own = encode(small, [clip_to_windows(clip) for clip in clips])
    inputs = BlockInputs(own, clips, lambda: others, counted)
    assert inputs.of(Row(AllTokens())) is own and not encoded
    annotated = inputs.of(Row(Oracle(keep=0.5)))
    assert (
        isinstance(annotated, AnnotatedWindow)
        and annotated.video_objects.sum() == (clips[0].video_objects >= 0).sum()
    )
    theirs = encode(small, [clip_to_windows(clip) for clip in others])
    other_audio = inputs.of(Row(AllTokens(), audio="other"))
    other_video = inputs.of(Row(AllTokens(), video="other"))
    assert len(encoded) == 1
    for changed, audio, video in ((other_audio, theirs, own), (other_video, own, theirs)):
        jax.tree.map(np.testing.assert_array_equal, changed.audio, audio.audio)
        np.testing.assert_array_equal(changed.video, video.video)
    live = inputs.of(Row(AllTokens(), audio="live"))
    assert len(encoded) == 2
    np.testing.assert_array_equal(live.video, own.video)


def test_windows_are_those_of_the_library():
    clip = make_clip(0, "validation")
    ours, theirs = clip_to_windows(clip), load_clip(clip.arrays, SPEC).windows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), ours, theirs)


def test_separate_audio_windows_are_independent():
    clip = make_clip(0, "validation", windows=2)
    live, whole = clip_to_windows(clip, separate_audio=True), clip_to_windows(clip)
    np.testing.assert_array_equal(live.patches, whole.patches)
    quieter = dataclasses.replace(clip, waveform=clip.waveform * np.repeat([1, 0.1], 32_000))
    np.testing.assert_array_equal(clip_to_windows(quieter, separate_audio=True).mel[0], live.mel[0])
    assert (
        np.abs(clip_to_windows(quieter, separate_audio=True).mel[1].max() - live.mel[1].max() + 0.5)
        < 0.01
    )


def test_clips_from_files_have_the_same_shapes():
    clip = make_clip(0, "validation", windows=2)
    ours, theirs = clip_to_windows(clip), clip_to_windows_by_file(clip)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
