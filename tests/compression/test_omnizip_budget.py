"""Algorithm 1: the budget to the token, bounds, and agreement with float64."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.compression.counts import (
    apportion,
    as_fraction,
    ceil_share,
    floor_share,
    proportion,
    round_share,
)
from omnizip_jax.compression.omnizip_budget import allocate_discards, discard_bounds
from omnizip_jax.compression.omnizip_video import split_over_grids
from tests.compression import oracle

WINDOWS, AUDIO, VIDEO = 5, 50, 288
CONFIGS = [
    OmniZipConfig(),
    OmniZipConfig(rho_audio=0.4, rho_video=0.7),
    OmniZipConfig(rho_video=0.75),
    OmniZipConfig(rho_video=0.35),
    OmniZipConfig(rho_min=0.0, rho_max=1.0, rho_video=0.5),
    OmniZipConfig(rho_min=0.55, rho_max=0.55, rho_video=0.55),
]


def allocate(retention, audio_counts, video_counts, config):
    """Algorithm 1 where ``rho_video`` of the clip is discarded; not compiled for each setting."""
    total = oracle.half_even(config.rho_video, video_counts.sum())
    counts = jnp.asarray(audio_counts), jnp.asarray(video_counts)
    return allocate_discards(jnp.asarray(retention), *counts, total, config, config.rho_video)


@st.composite
def clips(draw):
    audio = st.one_of(st.just(0), st.just(AUDIO), st.integers(1, AUDIO))
    video = st.one_of(st.just(0), st.just(VIDEO), st.integers(1, VIDEO))
    audio_counts = draw(st.lists(audio, min_size=WINDOWS, max_size=WINDOWS))
    video_counts = draw(st.lists(video, min_size=WINDOWS, max_size=WINDOWS))
    kept = [draw(st.integers(0, n)) for n in audio_counts]
    retention = np.array(kept) / np.maximum(audio_counts, 1)
    return retention, np.array(audio_counts), np.array(video_counts)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(clips(), st.sampled_from(CONFIGS))
def test_budget_is_met_to_the_token_within_bounds(clip, config):
    retention, audio_counts, video_counts = clip
    found = np.asarray(
        allocate(np.float32(retention), audio_counts, video_counts, config), np.int64
    )
    total = oracle.half_even(config.rho_video, video_counts.sum())
    assert found.sum() == total
    low = np.float64([as_fraction(config.rho_min) * int(n) for n in video_counts])
    high = np.float64([as_fraction(config.rho_max) * int(n) for n in video_counts])
    assert np.all((low - 1 < found) & (found < high + 1))
    # Where integers between the bounds exist and can meet the budget, the bounds hold as they are.
    lower, upper = np.ceil(low), np.floor(high)
    between = lower <= upper
    lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    if lower.sum() <= total:
        assert np.all((found >= lower)[between])
    if upper.sum() >= total:
        assert np.all((found <= upper)[between])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(clips(), st.sampled_from(CONFIGS))
def test_equals_float64_bisection(clip, config):
    with jax.enable_x64(True):
        found = np.asarray(allocate(*clip, config))
    np.testing.assert_array_equal(found, oracle.discards(*clip, config))


def test_louder_windows_keep_more_and_windows_without_audio_keep_the_mean():
    retention = np.float32([0.2, 0.9, 0.6, 0])
    counts, video = np.array([50, 50, 50, 0]), np.full(4, 280)
    found = np.asarray(allocate(retention, counts, video, OmniZipConfig()))
    assert found[0] > found[2] > found[1]
    assert found[3] == 168  # 0.6 * 280


def test_windows_that_keep_all_audio_still_meet_the_budget():
    # With rho_min = 0 eq. 5 gives every window the rate 0, which no factor scales.
    config = OmniZipConfig(rho_min=0.0, rho_video=0.6)
    found = allocate(np.ones(3, np.float32), np.full(3, 50), np.full(3, 100), config)
    np.testing.assert_array_equal(found, [60, 60, 60])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.55, 0.7, 1.0, 1 / 3, 0.9999, 0.123457])
def test_counts_are_those_of_exact_arithmetic(share):
    counts, meant = np.arange(2000), Fraction(repr(share)).limit_denominator(10**6)
    np.testing.assert_array_equal(
        round_share(as_fraction(share), counts), [round(meant * int(n)) for n in counts]
    )
    assert np.all(
        floor_share(as_fraction(share), counts) == [(meant * int(n)) // 1 for n in counts]
    )
    assert np.all(
        ceil_share(as_fraction(share), counts) == [-((-meant * int(n)) // 1) for n in counts]
    )
    for rule in (floor_share, ceil_share, round_share):  # the same in int32
        large = [counts, np.arange(499_900, 500_001), np.arange(2**31 - 100, 2**31)]
        large = np.concatenate(large).astype(np.int32)
        found = rule(as_fraction(share), jnp.asarray(large))
        np.testing.assert_array_equal(found, rule(as_fraction(share), np.int64(large)))
    # 0.3 of 50 is 15, 0.55 of 100 is 55, though their binary fractions say otherwise.
    assert ceil_share(as_fraction(0.55), np.array(100)) == 55


def test_products_of_large_counts_are_exact_in_int32():
    """Windows of 32,768 tokens, of large frames, and clips of millions of tokens."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 32_768, 100)
    total = int(sizes.sum() * 0.437)
    found = np.asarray(apportion(jnp.int32(total), jnp.asarray(sizes, jnp.int32)), np.int64)
    assert found.sum() == total and np.abs(found - total * sizes / sizes.sum()).max() <= 1
    kept = split_over_grids(jnp.int32(60_001), jnp.full(4, 16_384, jnp.int32))
    assert np.cumsum(kept).tolist() == [-(-60_001 * n // 4) for n in (1, 2, 3, 4)]
    config = OmniZipConfig(rho_min=0.6, rho_max=0.6)
    for discarded in (0.437, 0.843):  # both bounds are on one side of it and move halfway
        total = int(discarded * sizes.sum())
        low, high = discard_bounds(jnp.asarray(sizes, jnp.int32), jnp.int32(total), config)
        assert np.sum(low, dtype=int) <= total <= np.sum(high, dtype=int)
        moved, part = (low, 0.5 * discarded) if discarded < 0.6 else (high, 0.5 + 0.5 * discarded)
        np.testing.assert_allclose(moved, part * sizes, atol=1.1)
    for part, whole in ((1, 1), (999_983, 1_000_000), (2**21 - 1, 2**22)):
        for count in (0, 1, 255, 256, 65_537, 2**31 - 1):
            down, rest = proportion(part, jnp.int32(count), whole)
            assert (int(down), int(rest)) == divmod(part * count, whole)
