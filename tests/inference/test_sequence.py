"""Blocks of tokens on their way into a cache."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.inference.context import SlotMetadata
from omnizip_jax.inference.sequence import TokenSequence, concatenate

STAYS = np.array([0, 1, 1, 0, 0, 1, 0, 1], bool)


def block(keep, seed=0, deepstack=None):
    rng = np.random.default_rng(seed)
    size = len(keep)
    slots = SlotMetadata(
        *(jnp.asarray(rng.integers(1, 9, size)) for _ in range(4)), rng.random(size)
    )
    embeddings = rng.standard_normal((size, 4)).astype(np.float32)
    positions = jnp.asarray(rng.integers(1, 99, (3, size)))
    return TokenSequence(
        (jnp.asarray(embeddings),),
        jnp.arange(size),
        positions,
        jnp.asarray(keep),
        slots,
        (deepstack,),
    )


@pytest.mark.parametrize("capacity", [1, 3, 4, 6])
def test_what_stays_is_in_front(capacity):
    given = block(STAYS)
    packed, lost = given.packed(capacity)
    place = np.flatnonzero(STAYS)[:capacity]
    assert int(lost) == max(STAYS.sum() - capacity, 0)
    assert packed.keep.tolist() == [i < len(place) for i in range(capacity)]
    used = slice(0, len(place))
    np.testing.assert_array_equal(packed.embeddings[used], given.embeddings[place])
    np.testing.assert_array_equal(packed.positions[:, used], given.positions[:, place])
    for name in vars(given.slots):
        found, expected = getattr(packed.slots, name), getattr(given.slots, name)
        np.testing.assert_array_equal(found[used], np.asarray(expected)[place], err_msg=name)
    assert not np.any(packed.embeddings[len(place) :])


def test_packing_does_not_care_where_blocks_meet():
    first, second = block(STAYS[:3], seed=1), block(STAYS[3:], seed=2)
    (whole, _), (one, _), (other, _) = (
        concatenate(first, second).packed(4),
        first.packed(2),
        second.packed(2),
    )
    np.testing.assert_array_equal(
        whole.embeddings, np.concatenate([one.embeddings, other.embeddings])
    )
    np.testing.assert_array_equal(
        whole.positions, np.concatenate([one.positions, other.positions], axis=1)
    )


def test_deepstack_rows_stay_with_their_tokens():
    """Two windows of two video tokens, between texts without rows, in another order."""
    rows = np.random.default_rng(3).standard_normal((2, 3, 2, 4)).astype(np.float32)
    text, video = block(STAYS[:3], seed=1), block(STAYS[3:7], 2, jnp.asarray(rows))
    whole = concatenate(text, video, block(STAYS[7:], seed=4))
    order = np.array([3, 5, 0, 6, 4, 7, 1, 2])
    used = np.array([1, 1, 1, 1, 0, 1, 1, 0], bool)
    gathered = whole.gather(jnp.asarray(order), jnp.asarray(used))
    expected = np.zeros((3, 8, 4), np.float32)
    by_token = rows.transpose(1, 0, 2, 3).reshape(3, 4, 4)
    expected[:, [0, 1, 3]] = by_token[:, [0, 2, 3]]
    np.testing.assert_array_equal(gathered.deepstack_rows, expected)
    packed, _ = whole.packed(8)
    kept = np.flatnonzero(STAYS)
    np.testing.assert_array_equal(
        packed.deepstack_rows[:, : len(kept)], whole.deepstack_rows[:, kept]
    )
    assert text.deepstack_rows is None
