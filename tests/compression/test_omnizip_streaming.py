"""The causal rule: budgets after every window, scores, threshold, independence of later windows."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.compression.omnizip_streaming import (
    BALANCE_SLACK,
    causal_scores,
    running_threshold,
)
from omnizip_jax.types import AudioFeatures, EncodedWindow, WindowTokens
from tests.compression.clips import compress

FRAMES, HEADS, SIZE, PLACES, WIDTH = 40, 2, 8, 15, 6
TOKENS = FRAMES // 2
SOFT = OmniZipConfig.paper(causal=True)
HARD = OmniZipConfig.paper(causal=True, rho_audio=0.4, rho_video=0.7)
# The video budget is the bound itself, and no integer near it meets it; no anchors.
TIGHT = OmniZipConfig.paper(
    causal=True, rho_audio=0.55, rho_video=0.61, rho_max=0.61, merge_size=0, key_windows=2
)
KEY = jax.random.key(0)  # not used
CONFIGS = {"soft": SOFT, "hard": HARD, "tight": TIGHT}


def make(seed, windows=96, loudness=None, places=PLACES, holes=True):
    """The arrays of encoded windows, with an axis of windows; padding holds garbage."""
    rng = np.random.default_rng(seed)
    if loudness is None:  # bursts of one to six windows
        loudness = np.repeat(rng.uniform(0, 2, windows), rng.integers(1, 7, windows))[:windows]
    frames, seen = np.full(windows, FRAMES), np.full((windows, 2), places)
    if holes:
        frames[rng.choice(windows, windows // 10)] = 0
        frames[rng.choice(windows, 3)] = rng.integers(0, FRAMES, 3)
        seen[rng.choice(windows, windows // 10)] = 0
        seen[rng.choice(windows, 3), 1] = 0
    shape = (windows, FRAMES, HEADS, SIZE)
    asked = rng.standard_normal((HEADS, SIZE))
    asked /= np.linalg.norm(asked, axis=-1, keepdims=True)
    heard = loudness[:, None] + 0.3 * rng.standard_normal((windows, FRAMES))
    keys = asked * heard[:, :, None, None] + 0.3 * rng.standard_normal(shape)
    frame_mask = np.arange(FRAMES) < frames[:, None]
    video_mask = np.arange(PLACES) < seen[:, :, None]
    keys[~frame_mask] = 50
    audio = rng.standard_normal((windows, TOKENS, WIDTH))
    video = rng.standard_normal((windows, 2, PLACES, WIDTH))
    return {
        "queries": np.float32(3 * asked + 0.5 * rng.standard_normal(shape)),
        "keys": np.float32(keys),
        "frame_mask": frame_mask,
        "audio": np.float32(audio),
        "audio_mask": frame_mask.reshape(windows, -1, 2).all(-1),
        "video": np.float32(np.where(video_mask[..., None], video, 1e3)),
        "video_mask": video_mask,
    }


def encoded(window):
    """A window or a clip of these arrays."""
    return EncodedWindow(
        audio=AudioFeatures(
            tokens=window["audio"],
            token_mask=window["audio_mask"],
            queries=window["queries"],
            keys=window["keys"],
            frame_mask=window["frame_mask"],
        ),
        video=window["video"],
        video_mask=window["video_mask"],
    )


def begin(config, clip):
    """The state before the first window."""
    return config.begin(encoded(jax.tree.map(lambda x: x[0], clip)))


@functools.cache
def program(config):
    @jax.jit
    def run(clip):
        plan = begin(config, clip)
        return jax.lax.scan(lambda p, w: config.step(p, encoded(w), KEY), plan, clip)[1]

    return lambda clip: jax.tree.map(np.asarray, run(clip))


def attention(queries, keys):
    """Mean attention of a query to each key, times the number of keys; in float64."""
    by_head = (np.moveaxis(np.float64(x), 1, 0) for x in (queries, keys))
    weights = np.exp(next(by_head) @ next(by_head).transpose(0, 2, 1) / np.sqrt(SIZE))
    return (weights / weights.sum(-1, keepdims=True)).mean((0, 1)) * len(keys)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def shortfalls(clip, plan, config):
    """Audio and video tokens kept beyond the budget after every window."""
    audio = plan.audio_salient.sum(1) - (1 - config.rho_audio) * clip["audio_mask"].sum(1)
    video = plan.video_keep.sum((1, 2)) - (1 - config.rho_video) * clip["video_mask"].sum((1, 2))
    return np.cumsum(audio), np.cumsum(video)


@pytest.mark.parametrize("name", ["soft", pytest.param("hard", marks=pytest.mark.slow), "tight"])
@pytest.mark.parametrize("seed", range(4))
def test_the_budget_holds_after_every_window(name, seed):
    config, clip = CONFIGS[name], make(seed)
    plan = program(config)(clip)
    assert not np.any(plan.audio_keep & ~clip["audio_mask"])
    assert not np.any(plan.video_keep & ~clip["video_mask"])
    for excess, came in zip(
        shortfalls(clip, plan, config),
        (clip["audio_mask"].sum(1), clip["video_mask"].sum((1, 2))),
        strict=True,
    ):
        assert np.abs(excess).max() <= float(BALANCE_SLACK) * came.max() + 1e-6
        # So, once 64 windows have come, the rate is within one percentage point.
        ends = np.arange(64, len(excess) + 1)
        total = np.cumsum(came)
        assert np.all(np.abs(excess[ends - 1]) <= 0.01 * total[ends - 1])
    count = clip["video_mask"].sum((1, 2))
    discarded = count - plan.video_keep.sum((1, 2))
    assert np.all(discarded > config.rho_min * count - 1)
    assert np.all(discarded < config.rho_max * count + 1)
    np.testing.assert_allclose(plan.video_rate, discarded / np.maximum(count, 1), atol=1e-6)
    if name != "tight":  # here integers inside the bounds can always meet the budget
        assert np.all(discarded >= np.ceil(config.rho_min * count - 1e-9))
        assert np.all(discarded <= np.floor(config.rho_max * count + 1e-9))


@pytest.mark.parametrize("loudness", [np.zeros(96), np.arange(96) / 24, np.arange(96) % 48 / 12])
@pytest.mark.slow
def test_the_budget_holds_on_ramps_and_small_frames(loudness):
    """A slack measured in slots instead of tokens would be five windows of such small frames."""
    clip = make(7, loudness=loudness, places=3, holes=False)
    plan = program(SOFT)(clip)
    audio, video = shortfalls(clip, plan, SOFT)
    assert np.abs(audio).max() < TOKENS / 2 + 1e-6 and np.abs(video).max() < 3 + 1e-6
    assert abs(audio[63]) <= 0.01 * 64 * TOKENS and abs(video[63]) <= 0.01 * 64 * 6


def test_scores_against_float64_in_one_trace():
    clip = make(3, windows=9)
    config = dataclasses.replace(SOFT, key_windows=3)

    def both(plan, window):
        scores = causal_scores(plan, window["queries"], window["keys"], window["frame_mask"])
        return scores, config.step(plan, encoded(window), KEY)[0]

    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(both, n=1))
    plan = begin(config, clip)
    for w in range(9):
        scores, plan = step(plan, jax.tree.map(lambda x, w=w: x[w], clip))
        here, past = clip["frame_mask"][w], slice(max(w - 3, 0), w + 1)
        expected = np.zeros(FRAMES)
        if here.any():
            keys = clip["keys"][past][clip["frame_mask"][past]]
            expected[here] = attention(clip["queries"][w][here], keys)[-here.sum() :]
        pairs = np.where(clip["audio_mask"][w], expected.reshape(-1, 2).mean(1), 0)
        np.testing.assert_allclose(scores, pairs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rho", [0.3, 0.4, 0.55])
def test_threshold_is_the_quantile_of_recent_scores(rho):
    rng = np.random.default_rng(0)
    scores = rng.random((4, 10)).astype(np.float32)
    threshold = jax.jit(running_threshold, static_argnums=2)
    for count in (1, 7, 13, 39):
        mask = np.zeros(40, bool)
        mask[rng.choice(40, count, replace=False)] = True
        mask = mask.reshape(4, 10)
        expected = np.quantile(scores[mask], rho, method="inverted_cdf")
        assert threshold(scores, mask, rho) == expected
    assert threshold(scores, np.zeros((4, 10), bool), rho) == -np.inf  # nothing to compare with


def test_the_first_window_keeps_its_own_share():
    clip = make(1, windows=96, holes=False)
    plan = program(SOFT)(clip)
    scores = attention(clip["queries"][0], clip["keys"][0]).reshape(-1, 2).mean(1)
    best = np.argsort(-scores)[: round(0.7 * TOKENS)]
    np.testing.assert_array_equal(np.flatnonzero(plan.audio_salient[0]), np.sort(best))


def test_later_windows_change_nothing():
    one, other = make(1), make(2)
    mixed = {k: np.concatenate([one[k][:40], other[k][40:]]) for k in one}
    a, b = program(SOFT)(one), program(SOFT)(mixed)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:40], y[:40]), a, b)
    assert np.any(a.audio_keep[40:] != b.audio_keep[40:])


def test_windows_without_audio_or_video():
    clip = make(5)
    clip["frame_mask"][20:40] = False
    clip["audio_mask"][20:40] = False
    clip["video_mask"][60:70] = False
    plan = program(SOFT)(clip)
    silent, blind = slice(20, 40), slice(60, 70)
    assert not plan.audio_keep[silent].any() and not plan.video_keep[blind].any()
    assert np.all(plan.audio_retention[silent] == 0) and np.all(plan.video_rate[blind] == 0)
    count = clip["video_mask"].sum((1, 2))[silent]
    off = plan.video_rate[silent] * count - SOFT.rho_video * count
    assert np.all(np.abs(off) < 1 + 1e-4)
    assert all(np.all(np.isfinite(x)) for x in (plan.audio, plan.audio_retention, plan.video_rate))


@pytest.mark.parametrize("config", [SOFT, pytest.param(HARD, marks=pytest.mark.slow)])
def test_audio_guides_the_video(config):
    """Single loud windows among quiet ones keep more of their audio and video."""
    loud = np.arange(96) % 4 == 0
    plan = program(config)(make(11, loudness=1.5 * loud, holes=False))
    later = np.arange(96) >= 8
    heard, quiet = loud & later, ~loud & later
    assert plan.audio_retention[heard].mean() > plan.audio_retention[quiet].mean() + 0.2
    assert plan.video_rate[heard].mean() < plan.video_rate[quiet].mean() - 0.1
    assert np.std(plan.audio_salient.sum(1)) > 0.1 * TOKENS  # no fixed quota


@pytest.mark.slow
def test_constant_statistics_approach_look_ahead():
    clip = make(4, loudness=np.ones(96), holes=False)
    plan = program(SOFT)(clip)
    flat = (clip[k].reshape(-1, HEADS, SIZE) for k in ("queries", "keys"))
    scores = np.float32(attention(*flat).reshape(96, -1, 2).mean(-1))
    tokens = WindowTokens(
        clip["audio"], scores, clip["audio_mask"], clip["video"], clip["video_mask"]
    )
    whole = compress(tokens, OmniZipConfig.paper())
    whole = jax.tree.map(np.asarray, whole)

    assert overlap(plan.audio_salient[48:], whole.audio_salient[48:]) > 0.9
    assert overlap(plan.video_keep[48:], whole.video_keep[48:]) > 0.9
    assert np.corrcoef(plan.audio_retention[8:], whole.audio_retention[8:])[0, 1] > 0.8
