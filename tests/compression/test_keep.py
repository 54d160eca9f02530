"""OmniZip set by the share of all tokens that it keeps: over a clip, and in a stream."""

import dataclasses

import jax
import numpy as np
import pytest

from omnizip_jax.compression import DyCoke, Mixed, OmniZipConfig, PublishedOmniZip
from omnizip_jax.compression.omnizip_streaming import BALANCE_SLACK, nominal_rates
from tests.compression import loops, oracle
from tests.compression.clips import compress, counts_of, random_clip
from tests.compression.test_omnizip import assert_same

CONFIGS = {
    "half": OmniZipConfig.paper(keep=0.45),
    "little": OmniZipConfig.paper(keep=0.2),
    "most": OmniZipConfig.paper(keep=0.9, anchor_ratio=0.15),
    "still": OmniZipConfig.paper(keep=0.35, rho_min=0.6, rho_max=0.6, merge_size=0),
    "all": OmniZipConfig.paper(keep=1.0),
}


def without(tokens, name):
    mask = {f"{name}_mask": np.zeros_like(getattr(tokens, f"{name}_mask"))}
    return tokens.replace(**mask)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "half" else name for name in CONFIGS],
)
def test_equals_float64_loops(name):
    config = CONFIGS[name]
    clips = [random_clip(seed) for seed in range(6)]
    clips += [without(clips[0], "audio"), without(clips[1], "video")]
    for tokens in clips:
        clip = compress(tokens, config)
        assert_same(clip, oracle.compress(tokens, config), tokens)
        counts = counts_of(tokens)
        kept = int(clip.audio_keep.sum() + clip.video_keep.sum())
        assert (
            kept
            == config.plan(*counts).total
            == oracle.half_even(config.keep, sum(map(np.sum, counts)))
        )


def test_the_paper_s_settings_lie_on_the_line():
    # Full windows: 50 audio tokens, two of them anchors in addition, and 288 video tokens.
    for rho_audio, rho_video in [(0.3, 0.6), (0.4, 0.7)]:
        keep = (50 * (1 - rho_audio) + 2 + 288 * (1 - rho_video)) / 338
        config = OmniZipConfig(keep=keep)
        np.testing.assert_allclose(nominal_rates(config, 50, 288), (rho_audio, rho_video))


@pytest.mark.slow
def test_guidance_survives_where_the_bounds_are_too_narrow():
    tokens = random_clip(5, windows=12, holes=False)
    clip = compress(tokens, OmniZipConfig.paper(keep=0.25))
    rates = np.asarray(clip.video_rate)
    assert rates.mean() > 0.75 and np.ptp(rates) > 0.05
    assert np.corrcoef(rates, clip.audio_retention)[0, 1] < -0.8


def test_less_than_the_anchors_is_refused():
    config = OmniZipConfig(keep=0.01)
    with pytest.raises(ValueError, match=r"less than the 20 audio anchors: keep at least 0\.019"):
        config.plan(np.full(10, 50), np.full(10, 55))
    with pytest.raises(ValueError, match="less than the 20 audio anchors"):
        Mixed(audio=OmniZipConfig(), video=DyCoke(), keep=0.01).plan(
            np.full(10, 50), np.full(10, 55)
        )
    assert (
        dataclasses.replace(config, merge_size=0).plan(np.full(10, 50), np.full(10, 55)).total == 10
    )
    assert not hasattr(PublishedOmniZip(), "keep")
    with pytest.raises(ValueError, match="share between 0 and 1"):
        OmniZipConfig(keep=1.2)


@pytest.mark.slow
def test_a_uniform_split_keeps_the_same_share_of_both():
    counts = np.array([50, 50, 0, 17]), np.array([288, 200, 288, 0])
    for keep in (0.2, 0.35, 0.8):
        budget = OmniZipConfig(keep=keep, split="uniform").plan(*counts)
        assert budget.audio == oracle.half_even(keep, counts[0].sum())
        assert budget.total == oracle.half_even(keep, sum(map(np.sum, counts)))
    with pytest.raises(ValueError, match=r"split must be one of paper, uniform, got 'even'"):
        OmniZipConfig(split="even")


@pytest.mark.parametrize("keep", [0.15, pytest.param(0.45, marks=pytest.mark.slow), 0.8])
def test_a_stream_holds_the_share_after_every_window(keep):
    config = OmniZipConfig.paper(keep=keep, causal=True)
    for seed in range(3):
        windows = loops.encoded_clip(seed, windows=80)
        audio, video = loops.sizes(windows)
        silent, blind = slice(20, 30), slice(40, 50)
        windows.audio.token_mask[silent] = windows.audio.frame_mask[silent] = False
        windows.video_mask[blind] = False
        audio, video = loops.sizes(windows)
        chosen = jax.tree.map(np.asarray, loops.select(config, windows))
        assert not np.any(chosen.audio_keep & ~windows.audio.token_mask)
        assert not np.any(chosen.video_keep & ~windows.video_mask)
        kept = chosen.audio_keep.sum(-1) + chosen.video_keep.sum((1, 2))
        excess = np.cumsum(kept) - keep * np.cumsum(audio + video)
        assert np.abs(excess).max() <= float(BALANCE_SLACK) * (audio + video).max() + 1
        assert kept.sum() <= config.plan(audio, video).total
        assert kept.max() <= config.step_bound(20, 32) <= 52
        share = kept[silent].sum() / video[silent].sum()
        assert abs(share - keep) < 0.06
