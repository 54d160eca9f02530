"""Novelty of tokens against float64 loops over all tokens before them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from omnizip_jax.compression.novelty_weights import (
    RECENT,
    Novelty,
    NoveltyState,
    golden_ratio_sequence,
)
from tests.compression import loops

NOVELTY = Novelty()
advance = jax.jit(NOVELTY.advance)


class Modality:
    """Statistics of all tokens so far."""

    def __init__(self):
        self.units, self.surprises, self.weights = [], [], []

    def importance(self, tokens, surprise_of):
        """Of a window's tokens, once they have come."""
        self.units += list(loops.unit(tokens))
        mean = np.mean(self.units, axis=0)
        surprise = [surprise_of(i, token, mean) for i, token in enumerate(tokens)]
        self.surprises += surprise
        usual = np.mean(self.surprises)
        weight = [NOVELTY.coverage + (s / usual) ** NOVELTY.sharpness for s in surprise]
        first = len(self.weights) + 1
        self.weights += weight
        u = np.arange(first, len(self.weights) + 1) * loops.GOLDEN % 1
        return np.array(weight) / u / np.mean(self.weights)


def test_importance_in_a_stream_equals_float64_loops():
    windows = loops.encoded_clip(2, windows=6, scattered=True)
    expected = NoveltyState.initial(jax.tree.map(lambda x: x[0], windows))
    sound, picture, before = Modality(), Modality(), None
    for number in range(6):
        window = jax.tree.map(lambda x, at=number: x[at], windows)
        expected, heard, seen = advance(expected, window)
        mask = window.audio.token_mask
        importance = sound.importance(
            window.audio.tokens[mask], lambda _, x, mean: 1 - loops.cosine(x, mean)
        )
        np.testing.assert_allclose(np.asarray(heard.importance)[0][mask], importance, rtol=3e-3)
        assert not np.any(np.asarray(heard.importance)[0][~mask])

        places, known = [], []
        for grid, own in zip(window.video, window.video_mask, strict=True):
            for place in np.flatnonzero(own):
                places.append(grid[place])
                others = [loops.unit(grid[own]).mean(0)]
                if before is not None and before[1][place]:
                    others.append(before[0][place])
                known.append(others)
            if own.any():
                before = grid, own

        def least(i, token, mean, known=known):
            return min(1 - loops.cosine(token, other) for other in [mean, *known[i]])

        importance = picture.importance(np.array(places), least)
        found = np.asarray(seen.importance)[0][window.video_mask]
        np.testing.assert_allclose(found, importance, rtol=3e-3)


def test_tokens_that_were_novel_long_ago_are_more_important_than_usual_ones():
    """The new tokens of a window weigh many times the others."""
    clip = loops.eventful(windows=12, at=6)
    expected, importance = NoveltyState.initial(jax.tree.map(lambda x: x[0], clip)), []
    for number in range(12):
        expected, _, seen = advance(expected, jax.tree.map(lambda x, at=number: x[at], clip))
        importance.append(np.asarray(seen.weight / seen.mean)[0])
    assert importance[6][0, :4].min() > 10 and np.median(importance[6:]) < 0.5
    # The second grid of that window shows something else again, but the first one was new, too.
    assert importance[6][:, :4].min() > 50 * np.median(importance[6:])


def test_the_means_cover_the_last_two_minutes():
    """After a lasting change, new tokens become usual ones."""
    clip = loops.encoded_clip(3, windows=2, holes=False)
    first, second = (jax.tree.map(lambda x, at=at: x[at], clip) for at in (0, 1))
    expected = NoveltyState.initial(first)
    for _ in range(RECENT):
        expected, *_ = advance(expected, first)
    assert int(expected.video.tokens) == RECENT * first.video_mask.size
    away = loops.cosine(expected.video.direction, total(second))
    for _ in range(RECENT):
        expected, *_ = advance(expected, second)
    assert loops.cosine(expected.video.direction, total(second)) > away
    assert int(expected.video.tokens) == RECENT * first.video_mask.size


def total(window):
    return loops.unit(window.video[window.video_mask]).sum(0)


def test_a_sample_is_spread_evenly():
    mask = jnp.ones((8, 50), bool)
    for share in (0.15, 0.25, 0.45):
        kept = np.asarray(golden_ratio_sequence(mask, np.uint32(7))).ravel() <= share
        gaps = np.diff(np.flatnonzero(kept))
        assert len(set(gaps)) <= 3  # the three gap theorem
        assert gaps.max() <= 2.7 / share
        halves = kept[:200].sum(), kept[200:].sum()
        assert abs(halves[0] - halves[1]) <= 2
    # Where a token lies among those that exist counts, not in which slot.
    scattered = np.random.default_rng(0).random((8, 50)) < 0.5
    dense = np.asarray(golden_ratio_sequence(np.ones(scattered.sum(), bool), np.uint32(0)))
    np.testing.assert_array_equal(
        np.asarray(golden_ratio_sequence(scattered, np.uint32(0)))[scattered], dense
    )
