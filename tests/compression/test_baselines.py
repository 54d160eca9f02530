"""All, random, and changing tokens; the counts that every method in two parts keeps."""

import itertools

import jax
import numpy as np
import pytest

from omnizip_jax.compression import AllTokens, RandomTokens, TemporalOnly
from omnizip_jax.compression.counts import RunningShare, as_fraction, running_share_bound
from tests.compression import loops
from tests.compression.oracle import half_even

KEY = jax.random.key(0)


def kept(selection):
    return int(np.sum(selection.audio_keep)), int(np.sum(selection.video_keep))


@pytest.mark.parametrize("seed", range(4))
def test_all_tokens(seed):
    windows = loops.encoded_clip(seed, scattered=True)
    counts = loops.sizes(windows)
    for audio, video in [(True, True), (False, True), (True, False)]:
        method = AllTokens(audio=audio, video=video)
        for chosen in (loops.select(method, windows), loops.stream(method, windows)):
            np.testing.assert_array_equal(chosen.audio_keep, windows.audio.token_mask & audio)
            np.testing.assert_array_equal(chosen.video_keep, windows.video_mask & video)
            assert sum(kept(chosen)) == method.plan(*counts).total
        assert method.step_bound(20, 32) == 20 * audio + 32 * video
    assert AllTokens().plan(*counts).total == sum(map(np.sum, counts))


SETTINGS = [
    {},
    {"rho_audio": 0.3, "rho_video": 0.615},
    {"keep": 0.35},
    {"keep": 1.0},
    {"keep": 0.0},
]
PAPER_SPLIT = {"keep": 0.35, "split": "paper"}


# A stream has a program for every share: {} and a share of all tokens are enough.
@pytest.mark.parametrize(
    ("settings", "select"),
    [
        *((settings, "select") for settings in (*SETTINGS, PAPER_SPLIT)),
        *((settings, "stream") for settings in (SETTINGS[0], PAPER_SPLIT)),
        *(pytest.param(x, "stream", marks=pytest.mark.slow) for x in SETTINGS[1:]),
    ],
    ids=str,
)
def test_random_counts_are_exact(settings, select):
    method = RandomTokens(**settings)
    for seed in range(6):
        windows = loops.encoded_clip(seed, scattered=True)
        counts = loops.sizes(windows)
        audio, video = (int(n.sum()) for n in counts)
        chosen = getattr(loops, select)(method, windows)
        assert not np.any(chosen.audio_keep & ~windows.audio.token_mask)
        assert not np.any(chosen.video_keep & ~windows.video_mask)
        assert sum(kept(chosen)) == method.plan(*counts).total
        if method.keep is None:
            expected = (1 - method.rho_audio, audio), (1 - method.rho_video, video)
            assert kept(chosen) == tuple(half_even(round(s, 6), n) for s, n in expected)
        else:
            assert sum(kept(chosen)) == half_even(method.keep, audio + video)
        if method.split == "paper":
            chosen = loops.select(method, windows)
            assert kept(chosen) == loops.line(method.keep, windows)


def test_random_tokens_are_drawn_uniformly():
    windows = loops.encoded_clip(3, scattered=True)
    draws = [loops.select(RandomTokens(keep=0.4), windows, jax.random.key(i)) for i in range(400)]
    for name, mask in (("audio", windows.audio.token_mask), ("video", windows.video_mask)):
        share = np.mean([getattr(draw, f"{name}_keep") for draw in draws], axis=0)[mask]
        # Of a mean of 400 draws with probability 0.4 the deviation is 0.0245.
        assert np.abs(share - 0.4).max() < 0.12 and abs(share.mean() - 0.4) < 0.01
    apart = loops.select(RandomTokens(keep=0.4), windows, jax.random.key(1))
    assert np.any(np.asarray(apart.video_keep) != draws[0].video_keep)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.123457, 0.0, 1.0])
def test_a_running_share_is_rounded_after_every_window(share):
    rng = np.random.default_rng(0)
    running, tokens, taken = RunningShare.initial(), 0, 0
    for _ in range(300):
        new = int(rng.choice([0, 1, 2, 50, 338]))
        running, count = running.advance(np.int32(new), as_fraction(share))
        tokens, taken = tokens + new, taken + int(count)
        assert taken == half_even(share, tokens)
        assert 0 <= count <= running_share_bound(as_fraction(share), new)


@pytest.mark.parametrize("settings", [{}, {"keep": 0.25}, {"keep": 0.8}], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_temporal_equals_float64_loops(seed, settings):
    method = TemporalOnly(**settings)
    windows = loops.encoded_clip(seed, scattered=seed % 2 == 1)
    chosen = loops.select(method, windows)
    audio, video = (mask.sum() for mask in (windows.audio.token_mask, windows.video_mask))
    counts = half_even(0.7, audio), half_even(0.4, video)
    if method.keep is not None:
        counts = loops.line(method.keep, windows)
    scores = np.full(windows.video_mask.shape, 3.0)
    grids = loops.grids_in_order(windows)
    for before, grid in itertools.pairwise(grids):
        for place in np.flatnonzero(windows.video_mask[grid] & windows.video_mask[before]):
            a, b = windows.video[grid][place], windows.video[before][place]
            scores[grid][place] = 1 - loops.cosine(a, b)
    np.testing.assert_array_equal(
        chosen.video_keep, loops.top(scores, windows.video_mask, counts[1])
    )
    expected = loops.top(loops.audio_scores(windows.audio), windows.audio.token_mask, counts[0])
    np.testing.assert_array_equal(chosen.audio_keep, expected)
    assert method.plan(*loops.sizes(windows)).total == sum(counts)
    with pytest.raises(ValueError, match="needs the whole clip"):
        method.begin(jax.tree.map(lambda x: x[0], windows))
