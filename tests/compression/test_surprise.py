"""Surprise against float64 loops, and what it promises of samples and of streams."""

import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.compression import Surprise
from omnizip_jax.compression.novelty_weights import SampleWeights
from omnizip_jax.compression.omnizip_streaming import BALANCE_SLACK, Balance
from omnizip_jax.compression.surprise import balanced_count
from tests.compression import loops
from tests.compression.loops import select, stream
from tests.compression.oracle import half_even


def sequence(mask):
    """``frac(i * golden)`` for the i-th valid token, from 1."""
    u = np.ones(mask.shape)
    u[mask] = np.arange(1, mask.sum() + 1) * loops.GOLDEN % 1
    return u


def surprises(windows):
    """The least ``1 - cos`` to the clip's mean, the grid's, and the same place before."""
    mask = windows.video_mask
    clip = loops.unit(windows.video[mask]).mean(0)
    out, before = np.zeros(mask.shape), None
    for grid in loops.grids_in_order(windows):
        mean = loops.unit(windows.video[grid][mask[grid]]).mean(0)
        for place in np.flatnonzero(mask[grid]):
            token = windows.video[grid][place]
            known = [clip, mean]
            if before is not None and mask[before][place]:
                known.append(windows.video[before][place])
            out[grid][place] = min(1 - loops.cosine(token, other) for other in known)
        before = grid
    return out


def sound_weights(method, windows):
    """The same for the sound: by ``1 - cos`` to the mean of the clip."""
    mask = windows.audio.token_mask
    tokens = windows.audio.tokens[mask]
    mean = loops.unit(tokens).mean(0)
    surprise = np.zeros(mask.shape)
    surprise[mask] = [1 - loops.cosine(token, mean) for token in tokens]
    return method.coverage + (surprise / surprise[mask].mean()) ** method.sharpness


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep": 0.25, "lean": 0.0}, {"keep": 0.15, "coverage": 0.5, "sharpness": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("seed", range(4))
def test_equals_float64_loops(seed, settings):
    method, windows = Surprise(**settings), loops.encoded_clip(seed, scattered=seed % 2 == 1)
    chosen = select(method, windows)
    heard, seen = windows.audio.token_mask, windows.video_mask
    if method.keep is None:
        audio, video = (half_even(0.45, mask.sum()) for mask in (heard, seen))
    else:
        audio = half_even(method.keep, heard.sum())
        video = half_even(method.keep, heard.sum() + seen.sum()) - audio
    scores = sound_weights(method, windows) ** method.lean / sequence(heard)
    np.testing.assert_array_equal(chosen.audio_keep, loops.top(scores, heard, audio))
    surprise = surprises(windows)
    weight = method.coverage + (surprise / surprise[seen].mean()) ** method.sharpness
    np.testing.assert_array_equal(
        chosen.video_keep, loops.top(weight / sequence(seen), seen, video)
    )


@pytest.mark.slow
def test_novel_tokens_are_kept():
    windows, at = loops.eventful(), 20
    for chosen in (select(Surprise(keep=0.15), windows), stream(Surprise(keep=0.15), windows)):
        keep = np.asarray(chosen.video_keep)
        assert keep[at, :, :4].all()
        assert keep[at].sum() > 1.3 * keep.sum((1, 2)).mean()
        assert keep.sum((1, 2)).min() > 0  # what is expected is sampled too


@pytest.mark.parametrize("keep", [None, 0.15, pytest.param(0.6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stream_holds_its_shares(seed, keep):
    method = Surprise(keep=keep)
    windows = loops.encoded_clip(seed, windows=80)
    windows.audio.token_mask[20:30] = windows.audio.frame_mask[20:30] = False
    windows.video_mask[40:50] = False
    audio, video = loops.sizes(windows)
    chosen = stream(method, windows)
    assert not np.any(chosen.audio_keep & ~windows.audio.token_mask)
    assert not np.any(chosen.video_keep & ~windows.video_mask)
    share = keep or 0.45
    heard, seen = chosen.audio_keep.sum(-1), chosen.video_keep.sum((1, 2))
    assert np.cumsum(heard).tolist() == [half_even(share, n) for n in np.cumsum(audio)]
    apart = np.abs(np.cumsum(seen) - share * np.cumsum(video))
    assert apart.max() <= (float(BALANCE_SLACK) + share / 4) * video.max() + 1
    assert (heard + seen).max() <= method.step_bound(20, 32)


@pytest.mark.slow
def test_a_stream_selects_as_a_clip_once_its_means_have_settled():
    windows = loops.eventful(60, 50)
    whole, lived = select(Surprise(keep=0.3), windows), stream(Surprise(keep=0.3), windows)
    late = slice(40, 60)
    same = np.asarray(whole.video_keep)[late] == lived.video_keep[late]
    assert same.mean() > 0.85


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"coverage must be above 0.*got 0\.0, 2\.0 and 0\.25"):
        Surprise(coverage=0.0)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        Surprise(keep=1.5)


@pytest.mark.parametrize("keep", [0.25, 0.333333, 0.123457])
@pytest.mark.parametrize("slots", [700, 5000, 65_536])
def test_the_video_of_large_windows_holds_its_share(keep, slots):
    """The balance counts in units of the share's denominator, which must remain inside int32."""
    share, balance, kept = Surprise(keep=keep).shares[1], Balance.initial(), 0
    mask = jnp.ones((1, 2, slots // 2), bool)
    ones = jnp.ones(mask.shape, jnp.float32)
    for window in range(1, 5):
        weights = SampleWeights(ones * (1.5 if window % 2 else 0.5), ones, jnp.float32(1))
        balance, count = balanced_count(balance, weights, mask, share)
        kept += int(count)
        assert abs(kept - keep * slots * window) <= slots * (0.5 + keep / 4)
    assert abs(kept / (4 * slots) - keep) < 0.01
