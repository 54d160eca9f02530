"""What leaves a full cache, and where the rest goes, against loops in numpy and fresh rotations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.inference.context import SlotMetadata
from omnizip_jax.inference.kv_cache_capacity import evict_slots, select_kept_slots
from omnizip_jax.models import rope
from omnizip_jax.models.config import TextConfig
from omnizip_jax.models.decoder import KVCache
from omnizip_jax.types import TokenKind

CONFIG = TextConfig(
    vocabulary=10,
    layers=2,
    hidden=32,
    heads=2,
    kv_heads=2,
    ffn=8,
    rope_theta=1e4,
    mrope_section=(2, 3, 3),
    rms_eps=1e-6,
    max_positions=2000,
    tied=True,
)
INTERLEAVED = dataclasses.replace(CONFIG, mrope_section=(4, 2, 2), mrope_interleaved=True)
SIZE, PREFIX_LENGTH, COLUMNS = 128, 5, 4


@dataclasses.dataclass
class Token:
    """One slot, with its position spelled out."""

    kind: int
    unit: int
    time: int
    base: int
    importance: float
    position: tuple[int, int, int]


def importance(rng) -> float:
    return float(rng.choice([0.2, 0.5, 1.0, 4.0]))


def history(plan: str, rng, marker_positions: int = 1) -> tuple[list[Token], int]:
    """Tokens of a made-up stream: "w" a window, "t" a turn of text. Returns the next position.

    The two start tokens of a clip have one position or each its own.
    """
    tokens = [Token(TokenKind.PREFIX, 0, i, i, 1, (i,) * 3) for i in range(PREFIX_LENGTH)]
    for token in tokens:
        token.time = token.base = 0
    now, unit, base = PREFIX_LENGTH, 0, None
    for letter in plan:
        if letter == "t":
            length = int(rng.integers(3, 6))
            tokens += [
                Token(TokenKind.TEXT, unit, now, now, 1, (now + i,) * 3) for i in range(length)
            ]
            now, unit, base = now + length, unit + 1, None
            continue
        if base is None:
            base = now + marker_positions
            tokens += [
                Token(TokenKind.START, unit, now, base, 1, (now + i % marker_positions,) * 3)
                for i in range(2)
            ]
            now, unit = base, unit + 1
        video = rng.choice(8, size=int(rng.integers(0, 6)), replace=False)
        for cell in sorted(video):
            place = (now, base + cell // COLUMNS, base + cell % COLUMNS)
            tokens.append(Token(TokenKind.VIDEO, unit, now, base, importance(rng), place))
        for i in sorted(rng.choice(50, size=int(rng.integers(1, 4)), replace=False)):
            tokens.append(Token(TokenKind.AUDIO, unit, now, base, importance(rng), (now + i,) * 3))
        now, unit = now + 50, unit + 1
    return tokens, now


def slots_of(tokens: list[Token]) -> SlotMetadata:
    def column(name, dtype):
        values = np.zeros(SIZE, dtype)
        values[: len(tokens)] = [getattr(token, name) for token in tokens]
        return jnp.asarray(values)

    names = ("kind", "unit", "time", "base")
    return SlotMetadata(
        *(column(name, np.int32) for name in names), importance=column("importance", np.float32)
    )


def new_positions(kept: list[Token], tokens: list[Token], now: int) -> tuple[list, int]:
    """Where the kept tokens go, by a loop: as if the stream had begun with them."""
    starts = {token.unit: token.time for token in tokens if token.kind != TokenKind.PREFIX}
    units = sorted(starts)
    lasts = {
        unit: (starts[units[i + 1]] if i + 1 < len(units) else now) - starts[unit]
        for i, unit in enumerate(units)
    }
    clock, begins, base, out = PREFIX_LENGTH, {}, None, []
    for token in kept:
        if token.kind == TokenKind.PREFIX:
            out.append(token.position)
            continue
        if token.unit not in begins:
            begins[token.unit] = clock
            clock += lasts[token.unit]
        moved = [p - token.time + begins[token.unit] for p in token.position]
        if token.kind == TokenKind.START:
            base = begins[token.unit] + token.base - token.time
        if token.kind == TokenKind.VIDEO:
            moved[1:] = [p - token.base + base for p in token.position[1:]]
        out.append(tuple(moved))
    return out, clock


PLANS = ["wwwwww", "twwwtww", "wwtwwtttwwww", "t", "ww"]


evict_all = jax.jit(evict_slots, static_argnums=5)


@functools.partial(jax.jit, static_argnames="config")
def rotate_layers(keys, positions, config):
    return jax.vmap(lambda layer: rope.rotate(layer, rope.angles(positions, config)))(keys)


def rotated(keys, positions, config):
    """Keys of all layers, rotated to their positions."""
    return np.asarray(rotate_layers(keys, positions, config))


@pytest.mark.parametrize(
    ("config", "marker_positions"),
    [(CONFIG, 1), (INTERLEAVED, 2)],
    ids=["qwen2_5_omni", "qwen3_omni"],
)
@pytest.mark.parametrize("memory", ["recent", "fading"])
@pytest.mark.parametrize("plan", PLANS)
def test_eviction(plan, memory, config, marker_positions):
    rng = np.random.default_rng(len(plan))
    tokens, now = history(plan, rng, marker_positions)
    length = jnp.int32(len(tokens))
    slots = slots_of(tokens)
    low_water = PREFIX_LENGTH + max(2, (len(tokens) - PREFIX_LENGTH) // 2)
    keep = select_kept_slots(slots, length, jnp.int32(now), memory, low_water, span=10**6)
    kept = [token for token, stays in zip(tokens, keep, strict=False) if stays]
    assert not keep[len(tokens) :].any()
    assert [t for t in kept if t.kind == TokenKind.PREFIX] == tokens[:PREFIX_LENGTH]
    assert len(kept) <= low_water

    # Turns are never cut; start tokens stay exactly as long as something of their video does.
    for unit in {t.unit for t in tokens if t.kind == TokenKind.TEXT}:
        alive = [stays for t, stays in zip(tokens, keep, strict=False) if t.unit == unit and t.kind]
        assert len(set(map(bool, alive))) == 1
    for start in (t for t in tokens if t.kind == TokenKind.START):
        media = [
            t for t in kept if t.kind in (TokenKind.AUDIO, TokenKind.VIDEO) and t.base == start.base
        ]
        assert (start in kept) == bool(media)

    keys = rng.standard_normal((2, SIZE, 2, 16)).astype(np.float32)
    values = rng.standard_normal((2, SIZE, 2, 16)).astype(np.float32)
    old = np.zeros((3, SIZE), np.int32)
    old[:, : len(tokens)] = np.array([t.position for t in tokens]).T
    cache = KVCache(jnp.asarray(rotated(keys, old, config)), jnp.asarray(values), length)
    cache, slots, moved_now = evict_all(
        cache, slots, keep, jnp.int32(now), jnp.int32(PREFIX_LENGTH), config
    )
    places, expected_now = new_positions(kept, tokens, now)
    count = len(kept)
    assert cache.length == count and moved_now == expected_now
    order = np.zeros(SIZE, int)
    order[:count] = np.flatnonzero(keep)
    fresh = np.zeros((3, SIZE), np.int32)
    fresh[:, :count] = np.array(places).T
    kept_keys, kept_values = np.asarray(cache.keys)[:, :count], np.asarray(cache.values)[:, :count]
    np.testing.assert_allclose(
        kept_keys, rotated(keys[:, order], fresh, config)[:, :count], atol=1e-4
    )
    np.testing.assert_array_equal(kept_values, values[:, order[:count]])

    # A second eviction that keeps everything changes nothing.
    everything = jnp.arange(SIZE) < count
    again, slots_again, now_again = evict_all(
        cache, slots, everything, moved_now, jnp.int32(PREFIX_LENGTH), config
    )
    np.testing.assert_allclose(np.asarray(again.keys)[:, :count], kept_keys, atol=1e-5)
    for name in ("time", "base"):
        before, after = (np.asarray(getattr(each, name)) for each in (slots, slots_again))
        np.testing.assert_array_equal(after[:count], before[:count])
    assert now_again == moved_now


def test_recent_lets_whole_windows_leave_and_fading_thins_the_old_ones():
    tokens, now = history("w" * 12, np.random.default_rng(3))
    slots, length = slots_of(tokens), jnp.int32(len(tokens))
    half = len(tokens) // 2
    recent = select_kept_slots(slots, length, jnp.int32(now), "recent", half, 10**6)
    fading = select_kept_slots(slots, length, jnp.int32(now), "fading", half, 10**6)

    def left(keep):
        media = [
            t.unit for t, k in zip(tokens, keep, strict=False) if k and t.kind >= TokenKind.AUDIO
        ]
        return set(media)

    units = {t.unit for t in tokens if t.kind >= TokenKind.AUDIO}
    assert left(recent) == {unit for unit in units if unit >= min(left(recent))}
    assert len(left(fading)) > len(left(recent))


def test_fading_ranks_by_importance_over_age():
    """Of n slots the n tokens with the highest importance / age are kept."""
    tokens, now = history("w" * 12, np.random.default_rng(5))
    slots, length = slots_of(tokens), jnp.int32(len(tokens))
    rest = [t for t in tokens if t.kind in (TokenKind.AUDIO, TokenKind.VIDEO)]
    newest = max(t.unit for t in tokens)
    value = {id(t): t.importance / (newest - t.unit + 1) for t in rest}
    for low_water in (len(tokens) // 3, len(tokens) // 2):
        keep = select_kept_slots(slots, length, jnp.int32(now), "fading", low_water, 10**6)
        stays = [value[id(t)] for t, k in zip(tokens, keep, strict=False) if k and id(t) in value]
        leaves = [
            value[id(t)] for t, k in zip(tokens, keep, strict=False) if not k and id(t) in value
        ]
        assert stays and leaves and min(stays) > max(leaves)


def test_positions_beyond_the_span_are_evicted():
    tokens, now = history("w" * 6, np.random.default_rng(0))
    slots, length = slots_of(tokens), jnp.int32(len(tokens))
    keep = select_kept_slots(slots, length, jnp.int32(now), "fading", SIZE - 1, span=120)
    for token, stays in zip(tokens, keep, strict=False):
        if token.kind in (TokenKind.AUDIO, TokenKind.VIDEO):
            assert bool(stays) <= (now - token.time <= 120)
