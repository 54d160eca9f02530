"""Methods with stages inside the decoder, through ``generate``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import generate, read
from omnizip_jax.compression import METHODS, FastV, Seats
from omnizip_jax.compression.seats import over_groups, rank_in_group
from omnizip_jax.inference.prefill import prefill_clip
from tests.conftest import clip_of

QUESTION = "What happens?"


def answer(params, windows, method, **settings):
    clip = clip_of(windows)
    return generate(params, clip, QUESTION, compression=method, max_new_tokens=6, **settings)


@pytest.mark.slow  # two more methods
def test_stages_that_drop_nothing_equal_full_tokens(params, random_windows):
    windows = random_windows([2, 2, 1], [200, 200, 77])
    everything = answer(params, windows, None)
    nothing = answer(params, windows, FastV(rho_audio=0.0, rho_video=0.0))
    assert nothing.token_ids == everything.token_ids
    assert nothing.counts == everything.counts


@pytest.mark.parametrize(
    "method",
    [
        FastV(),
        pytest.param(FastV(keep=0.6), marks=pytest.mark.slow),
        pytest.param(Seats(), marks=pytest.mark.slow),
        pytest.param(Seats(keep=0.3), marks=pytest.mark.slow),
    ],
)
def test_clips_share_a_program(params, random_windows, method):
    first = answer(params, random_windows([2, 2], [200, 200]), method)
    programs = prefill_clip._cache_size()
    again = answer(params, random_windows([2, 2], [200, 200], seed=1), method)
    assert prefill_clip._cache_size() == programs
    assert first.counts == again.counts and first.counts.generated > 0


@pytest.mark.parametrize("method", [None, FastV()])
def test_encoding_shows_a_bar_where_asked(params, random_windows, capfd, method):
    for progress in (True, False):
        answer(params, random_windows([2, 2], [200, 200]), method, progress=progress)
        assert ("encoding: 100%" in capfd.readouterr().err) == progress


def test_what_reads_with_the_question_cannot_be_read_ahead(params, random_windows):
    with pytest.raises(ValueError, match="use generate"):
        read(params, clip_of(random_windows([2], [200])), FastV())


def test_a_bound_that_is_too_low_is_an_error(params, random_windows, monkeypatch):
    monkeypatch.setattr("omnizip_jax.compression.fastv.AttentionStage.bound", lambda *_: 64)
    with pytest.raises(ValueError, match="they were lost"):
        answer(params, random_windows([2] * 6, [200] * 6), FastV(after=6))


@pytest.mark.slow
@pytest.mark.parametrize("method", [FastV(keep=0.35), Seats(keep=0.3)])
def test_sizes_without_padding_suffice(params, random_windows, monkeypatch, method):
    """Start tokens of the clip are not pruned, and have slots after every stage."""
    monkeypatch.setattr("omnizip_jax.inference.prefill.fine_bucket", lambda size: size)
    assert answer(params, random_windows([2, 1], [200, 77]), method).counts.generated > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_count_over_groups(seed):
    """Sums are met, no group gives what it has not, each gives one where that is possible."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 20, 9)
    total = int(rng.integers((sizes > 0).sum(), sizes.sum() + 1))
    weight = rng.random(9).astype(np.float32) + 0.1
    counts = np.asarray(over_groups(jnp.int32(total), weight, jnp.asarray(sizes)))
    assert counts.sum() == total and np.all(counts <= sizes) and np.all(counts >= sizes.clip(0, 1))


def test_places_in_groups():
    rng = np.random.default_rng(0)
    group, scores, valid = rng.integers(0, 4, 40), rng.random(40), rng.random(40) < 0.7
    found = np.asarray(rank_in_group(jnp.asarray(scores), jnp.asarray(valid), jnp.asarray(group)))
    for i in np.flatnonzero(valid):
        rivals = valid & (group == group[i]) & (scores > scores[i])
        assert found[i] == rivals.sum()


def test_every_method_is_known_by_name():
    assert {"omnizip", "published", "all", "random", "fastv", "seats"} <= set(METHODS)
