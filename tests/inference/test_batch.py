"""Answers side by side are those that each would have got alone."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import OmniZipConfig, WindowSpec, ask, feed, init_stream, read
from omnizip_jax.compression import FastV
from omnizip_jax.inference.api import begin_turn
from omnizip_jax.inference.decode import DECODE_BLOCK, SamplingParams, generate_tokens
from omnizip_jax.inference.generation import (
    BATCH_SIZES,
    batch_key,
    begin,
    finish,
    next_batch,
    run,
    step,
    step_batch,
)
from omnizip_jax.inference.inputs import UserTurn
from omnizip_jax.models import attention
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)
QUESTIONS = ("What happens?", "Who is it, and why?", "Where?", "And then?")
DECODINGS = (
    SamplingParams(19),
    SamplingParams(3, temperature=0.9, top_p=0.8, seed=5),
    SamplingParams(21, temperature=1.5, seed=2**32 - 1),
    SamplingParams(11),
)


@pytest.fixture(scope="module")
def windows(random_windows):
    clip = random_windows([2, 2, 1, 2], [200, 200, 77, 200])
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], clip) for i in range(4)]


@pytest.fixture(scope="module")
def streams(params, windows):
    """Four streams whose caches are filled to different lengths."""
    states = []
    for count in (1, 4, 2, 3):
        state = init_stream(params, capacity=768, text_slots=192, spec=SPEC)
        for window in windows[:count]:
            state = feed(params, state, window)
        states.append(state)
    return states


@pytest.fixture
def begun(params, streams):
    return [begin(params, *each) for each in zip(streams, QUESTIONS, DECODINGS, strict=True)]


@pytest.fixture(scope="module")
def alone(params, streams):
    return [
        run(params, begin(params, *each)).ids
        for each in zip(streams, QUESTIONS, DECODINGS, strict=True)
    ]


def run_batch(params, replies):
    while not all(generation.finished for generation in replies):
        replies = step_batch(params, replies)
    return replies


def test_a_batch_generates_the_tokens_of_single_sequences(params, begun, alone):
    done = run_batch(params, begun)
    assert [generation.ids for generation in done] == alone
    assert [len(ids) for ids in alone] == [19, 3, 21, 11]  # or the test would see little
    decode = params.tokenizer.decode
    assert [each.text for each in done] == [decode(x, skip_special_tokens=True) for x in alone]


def test_answers_join_and_leave_between_steps(params, begun, alone):
    first, second, third, fourth = begun
    first, second = step_batch(params, [first, second])
    assert second.finished and not first.finished
    first, third, fourth = step_batch(params, [first, third, fourth], tokens=5)
    fourth = step(params, fourth)
    third, fourth, first = step_batch(params, [third, fourth, first])
    done = [run(params, first), second, *run_batch(params, [third, fourth])]
    assert [generation.ids for generation in done] == alone


def test_an_end_token_ends_only_its_sequence(params, begun, alone):
    """The model's own end tokens are rare; here the third sequence's fourth token is one."""
    end = alone[2][3]
    assert end not in alone[2][:3]
    stepped = step_batch(params.replace(stop_tokens=(end,)), begun)
    for generation, ids in zip(stepped, alone, strict=True):
        expected = ids[:DECODE_BLOCK]
        expected = expected[: expected.index(end) + 1] if end in expected else expected
        assert generation.ids == expected
        assert generation.finished == (end in expected or len(ids) <= DECODE_BLOCK)
    assert stepped[2].ids == alone[2][:4] and not stepped[0].finished
    shown = params.tokenizer.decode(alone[2][:3], skip_special_tokens=True)
    assert stepped[2].text == shown  # without the end token, which is no special one here


def test_a_finished_sequence_is_unchanged(params, streams):
    """A finished sequence generates nothing while others go on, and can be appended afterwards."""
    decodings = SamplingParams(2), SamplingParams(14)

    def begun():
        for stream, sampling_params in zip(streams, decodings, strict=False):
            yield begin(params, stream, "What happens?", sampling_params, keep=True)

    expected = [finish(params, run(params, generation), keep=True)[1] for generation in begun()]
    for generation, other in zip(run_batch(params, list(begun())), expected, strict=True):
        _, after = finish(params, generation, keep=True)
        assert after is not None and other is not None
        length = int(other.cache.length)
        assert (after.used_slots, after.used_positions, int(after.cache.length)) == (
            other.used_slots,
            other.used_positions,
            length,
        )
        keys, other_keys = (each.cache.keys[:, :length] for each in (after, other))
        np.testing.assert_allclose(keys, other_keys, atol=1e-4)
        again, _ = ask(params, after, "And then?", max_new_tokens=8)
        assert again.token_ids == ask(params, other, "And then?", max_new_tokens=8)[0].token_ids


@pytest.mark.slow
def test_clips_pruned_inside_the_decoder_go_side_by_side_too(params, random_windows):
    """Their caches are in segments, each with its own length."""
    method, replies, alone = FastV(), [], []
    for seed in range(2):
        clip = clip_of(random_windows([2, 1], [200, 77], seed=seed))

        def answer(clip=clip):
            turn = UserTurn.of(params, [clip, "What happens?"])
            return begin_turn(params, turn, method, SamplingParams(12))[0]

        replies.append(answer())
        alone.append(run(params, answer()).ids)
    assert isinstance(replies[0].decode_state.cache, tuple)
    assert batch_key(replies[0]) == batch_key(replies[1])
    assert [generation.ids for generation in run_batch(params, replies)] == alone


def test_other_shapes_go_their_own_way(params, begun, alone, clip_reply):
    """Any answers may be handed in next_batch, finished ones too."""
    expected = run(params, clip_reply()).ids
    replies = run_batch(params, [begun[0], clip_reply(), *begun[1:], clip_reply()])
    assert [replies[1].ids, replies[5].ids] == [expected, expected]
    assert [replies[i].ids for i in (0, 2, 3, 4)] == alone


@pytest.fixture
def clip_reply(params, random_windows):
    context = read(params, clip_of(random_windows([2, 2], [200, 200])), OmniZipConfig())
    return lambda: begin(params, context, "Who?", SamplingParams(9))


def test_who_goes_together():
    assert next_batch(["a"]) == [0]
    assert next_batch(["a", "b", "b"]) == [0]
    assert next_batch(["b", "a", "b"]) == [0, 2]
    assert next_batch(["a"] * 3) == [0, 1]
    assert next_batch(["a", "b", "a", "a", "a", "a"]) == [0, 2, 3, 4]
    assert next_batch(["a"] * 20) == list(range(8))
    assert sorted(BATCH_SIZES, reverse=True) == list(BATCH_SIZES) and BATCH_SIZES[-1] == 1


def test_one_program_for_all_fillings_and_samplings(params, streams):
    def replies(order, *decodings):
        asked = zip([streams[i] for i in order], decodings, strict=True)
        return [
            begin(params, stream, "What happens?", sampling_params)
            for stream, sampling_params in asked
        ]

    programs: Any = generate_tokens
    step_batch(params, replies((0, 1), SamplingParams(4), SamplingParams(9, 0.5)))
    before = programs._cache_size()
    step_batch(params, replies((2, 3), SamplingParams(7, 1.0, 0.3, 8), SamplingParams(2)))
    assert programs._cache_size() == before


def test_every_sequence_attends_to_its_filled_slots(monkeypatch):
    """Every length that the switch can choose, and the last slot."""
    monkeypatch.setattr(attention, "MIN_LENGTH_BUCKET", 8)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    caches = [(draw(2, 64, 2, 4), draw(2, 64, 2, 4)) for _ in range(3)]
    q = draw(3, 6, 4)
    attend = jax.jit(chex.assert_max_traces(attention.attend_cached_batch, n=1))
    for starts in ((0, 3, 6), (7, 0, 8), (20, 31, 1), (32, 0, 5), (63, 62, 0)):
        out = attend(q, caches, jnp.int32(1), jnp.array(starts, jnp.int32))
        for row, (keys, values), start in zip(range(3), caches, starts, strict=True):
            k, v = (np.repeat(x[1, : start + 1], 3, axis=1) for x in (keys, values))
            score = np.einsum("nh,snh->ns", q[row], k) / 2
            weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
            np.testing.assert_allclose(out[row], np.einsum("ns,snh->nh", weight, v), atol=1e-5)


def test_the_caches_are_updated_in_place(params, begun):
    """A batch needs no second copy of its caches."""
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(begun[0].decode_state.cache))
    program = generate_tokens.lower(
        params.weights["text"],
        [generation.decode_state for generation in begun],
        [generation.sampling_params.sampling for generation in begun],
        [jnp.int32(DECODE_BLOCK)] * 4,
        config=params.config.text,
        steps=DECODE_BLOCK,
        end_tokens=params.end_tokens,
        backend=begun[0].context.prefill_config.backend,
    ).compile()
    memory: Any = program.memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * cache_bytes
    assert memory.temp_size_in_bytes < 2 * cache_bytes  # one layer of each sequence at a time
