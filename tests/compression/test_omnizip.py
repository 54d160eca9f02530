"""The paper's rule on whole clips: against float64 loops, and what must always hold."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnizip_jax.compression import OmniZipConfig, PublishedOmniZip
from omnizip_jax.compression.omnizip_steps import compress_clip
from omnizip_jax.types import WindowTokens
from tests.compression import oracle
from tests.compression.clips import compress, compress_program, counts_of, random_clip

few = settings(max_examples=12, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)  # of random clips, all of one shape
PAPER = OmniZipConfig.paper()
MANY_ANCHORS = OmniZipConfig.paper(
    rho_audio=0.5, rho_video=0.7, merge_size=2, anchor_ratio=0.15, knn=3
)


def assert_same(clip, expected, tokens, tolerance=1e-5):
    for name in ("audio_salient", "audio_keep", "video_keep"):
        np.testing.assert_array_equal(getattr(clip, name), expected[name], err_msg=name)
    np.testing.assert_allclose(clip.audio_retention, expected["audio_retention"], atol=1e-6)
    np.testing.assert_allclose(clip.video_rate, expected["video_rate"], atol=1e-6)
    scale = np.abs(expected["audio"][tokens.audio_mask]).max(initial=1)
    np.testing.assert_allclose(
        np.asarray(clip.audio)[tokens.audio_mask],
        expected["audio"][tokens.audio_mask],
        atol=tolerance * scale,
    )


@pytest.mark.parametrize("config", [PAPER, MANY_ANCHORS], ids=["default", "anchors"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_float64_loops(seed, config):
    tokens = random_clip(seed)
    assert_same(compress(tokens, config), oracle.compress(tokens, config), tokens)


@pytest.mark.parametrize("grids", [1, 3])
@pytest.mark.slow
def test_other_numbers_of_grids(grids):
    tokens = random_clip(grids, grids=grids)
    expected = oracle.compress(tokens, MANY_ANCHORS)
    assert_same(compress(tokens, MANY_ANCHORS), expected, tokens)


@few
@given(seed=SEEDS, norm=st.floats(1, 1000))
def test_nothing_underflows_at_any_feature_norm(seed, norm):
    tokens = random_clip(seed, scale=norm / 24**0.5)
    clip = compress(tokens, PAPER)
    assert_same(clip, oracle.compress(tokens, PAPER), tokens)
    assert np.all(np.isfinite(clip.audio))


@pytest.mark.parametrize("config", [MANY_ANCHORS, OmniZipConfig.published()], ids=["paper", "pub"])
@few
@given(seed=SEEDS)
def test_what_always_holds(seed, config):
    tokens = random_clip(seed)
    clip = jax.tree.map(np.asarray, compress(tokens, config))
    valid = tokens.audio_mask
    assert not np.any(clip.audio_keep & ~valid) and not np.any(clip.video_keep & ~tokens.video_mask)
    anchors = clip.audio_keep & ~clip.audio_salient
    assert not np.any(clip.audio_salient & ~clip.audio_keep)
    share, total = 1 - config.rho_audio, int(valid.sum())
    is_paper = not isinstance(
        config, PublishedOmniZip
    )  # the authors round a product of floats: 0.7 * 85 < 59.5
    count = oracle.half_even(share, total) if is_paper else round(share * total)
    assert clip.audio_salient.sum() == count
    # Only anchors change, and each only towards others of its kind.
    changed = np.any(clip.audio != tokens.audio, axis=-1)
    assert not np.any(changed & ~anchors)
    kept = clip.audio_keep.sum() + clip.video_keep.sum()
    counts = counts_of(tokens)
    assert kept <= config.plan(*counts).total
    if is_paper:
        discarded = counts[1].sum() - clip.video_keep.sum()
        assert discarded == oracle.half_even(config.rho_video, counts[1].sum())


def test_bound_on_an_ordinary_clip():
    tokens = random_clip(0, holes=False)
    counts = counts_of(tokens)
    clip = compress(tokens, PAPER)
    assert clip.audio_keep.sum() + clip.video_keep.sum() == PAPER.plan(*counts).total
    # The paper's 45 %: 35 + 2 of 50 audio tokens and 115 of 288 video tokens in each window.
    counts = np.full(10, 50), np.full(10, 288)
    assert OmniZipConfig().plan(*counts).total == 10 * 37 + 1152
    assert OmniZipConfig(merge_size=0).plan(*counts).total == 10 * 35 + 1152


@few
@given(seed=SEEDS)
def test_nothing_to_discard_is_the_identity(seed):
    tokens = random_clip(seed)
    config = OmniZipConfig.paper(rho_audio=0.0, rho_video=0.0, rho_min=0.0, merge_size=0)
    clip = compress(tokens, config)
    np.testing.assert_array_equal(clip.audio, tokens.audio)
    np.testing.assert_array_equal(clip.audio_keep, tokens.audio_mask)
    np.testing.assert_array_equal(clip.video_keep, tokens.video_mask)
    assert not np.any(clip.video_rate)


def test_windows_do_not_see_each_other_but_for_ranking_and_budget():
    tokens = random_clip(7, holes=False)
    order = np.array([3, 0, 5, 1, 4, 2])
    clip = jax.tree.map(lambda x: np.asarray(x)[order], compress(tokens, PAPER))
    moved = compress(jax.tree.map(lambda x: x[order], tokens), PAPER)
    np.testing.assert_array_equal(moved.audio_keep, clip.audio_keep)
    np.testing.assert_allclose(moved.audio, clip.audio, atol=1e-6)
    same = np.asarray(moved.video_rate) == clip.video_rate  # a tie may round the other way
    assert same.sum() >= 4
    np.testing.assert_array_equal(np.asarray(moved.video_keep)[same], clip.video_keep[same])


@pytest.mark.parametrize("config", [PAPER, OmniZipConfig.published()], ids=["paper", "pub"])
def test_one_program_for_all_contents(config):
    programs = compress_program._cache_size()
    full = random_clip(0)
    initial = full.replace(
        audio_mask=np.zeros_like(full.audio_mask), video_mask=np.zeros_like(full.video_mask)
    )
    no_audio = full.replace(audio_mask=initial.audio_mask)
    no_video = full.replace(video_mask=initial.video_mask)
    for tokens in (full, random_clip(1), no_audio, no_video, initial):
        clip = compress(tokens, config)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(clip))
        assert not np.any(clip.audio_keep & ~tokens.audio_mask)
        assert not np.any(clip.video_keep & ~tokens.video_mask)
        assert np.any(clip.audio_keep) == np.any(tokens.audio_mask)
        assert np.any(clip.video_keep) == np.any(tokens.video_mask)
    assert compress_program._cache_size() <= programs + 1


def test_padding_is_never_read():
    tokens = random_clip(2)
    blank = tokens.replace(
        audio=np.where(tokens.audio_mask[..., None], tokens.audio, 0),
        video=np.where(tokens.video_mask[..., None], tokens.video, 0),
        audio_scores=np.where(tokens.audio_mask, tokens.audio_scores, -1),
    )
    for config in (PAPER, OmniZipConfig.published()):
        clip, same = compress(tokens, config), compress(blank, config)
        np.testing.assert_array_equal(clip.audio_keep, same.audio_keep)
        np.testing.assert_array_equal(clip.video_keep, same.video_keep)
        valid = tokens.audio_mask
        np.testing.assert_array_equal(np.asarray(clip.audio)[valid], np.asarray(same.audio)[valid])


@pytest.mark.slow
def test_half_precision_features_are_compared_in_single():
    tokens = random_clip(4)
    half = tokens.replace(
        audio=jax.numpy.bfloat16(tokens.audio), video=jax.numpy.bfloat16(tokens.video)
    )
    clip = compress(half, PAPER)
    rounded = half.replace(audio=np.float32(half.audio), video=np.float32(half.video))
    expected = oracle.compress(rounded, PAPER)
    assert clip.audio.dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(clip.audio_keep, expected["audio_keep"])
    np.testing.assert_array_equal(clip.video_keep, expected["video_keep"])


def test_wrong_shapes_are_named():
    tokens = random_clip(0)
    budget = PAPER.plan(*counts_of(tokens))
    with pytest.raises(ValueError, match="audio_mask should have the shape"):
        compress_clip(tokens.replace(audio_mask=tokens.audio_mask[:, :-1]), budget, PAPER)
    with pytest.raises(ValueError, match="leading axis of windows"):
        compress_clip(jax.tree.map(lambda x: x[0], tokens), budget, PAPER)
    assert isinstance(tokens, WindowTokens)
