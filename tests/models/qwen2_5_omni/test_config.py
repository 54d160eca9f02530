"""Window shapes from checkpoints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omnizip_jax.checkpoint.small_model import RELEASED
from omnizip_jax.models.encode import check_spec
from omnizip_jax.models.registry import FAMILIES, read_config
from omnizip_jax.testbed.synthetic_clips import SPEC
from omnizip_jax.window_spec import WindowSpec

SMALL = read_config(RELEASED / "config.json")


def test_the_small_model_has_its_own():
    assert SMALL.spec == SPEC and SPEC.grid_slots == 36


def test_released_models_have_the_default():
    assert dataclasses.replace(SMALL, grid_slots=144).spec == WindowSpec()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_fewest_mel_frames_that_make_a_token(family):
    fewest = family.ModelConfig.MIN_MEL_FRAMES
    assert family.audio_tokens(np.array([fewest - 1, fewest])).tolist() == [0, 1]


def test_it_is_derived_from_the_sizes():
    config = dataclasses.replace(
        SMALL,
        audio=dataclasses.replace(SMALL.audio, n_window=50, mel_bins=80),
        vision=dataclasses.replace(SMALL.vision, patch=16, merge=4, temporal_patch=1),
        seconds_per_chunk=1,
        positions_per_second=20,
        grid_slots=64,
    )
    assert config.spec == WindowSpec(
        seconds=1,
        audio_slots=25,
        grids=2,
        grid_slots=64,
        patch=16,
        merge=4,
        temporal_patch=1,
        mel_bins=80,
        positions_per_second=20,
    )
    assert config.window_positions == 20


@pytest.mark.parametrize(
    "name",
    ["patch", "merge", "temporal_patch", "mel_bins", "min_mel_frames", "positions_per_second"],
)
def test_another_shape_is_rejected(name):
    check_spec(SMALL.spec, SMALL)
    with pytest.raises(ValueError, match=f"encoders have {name}="):
        check_spec(dataclasses.replace(SMALL.spec, **{name: 7}), SMALL)
