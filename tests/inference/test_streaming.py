"""A stream equals ``generate`` with a causal plan, evicts the right slots, and traces once."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import OmniZipConfig, WindowSpec, read
from omnizip_jax.compression import DyCoke, FastV
from omnizip_jax.inference import streaming as stream
from omnizip_jax.inference.decode import SamplingParams
from omnizip_jax.inference.generation import ask, finish, run
from omnizip_jax.inference.generation import begin as begin_reply
from omnizip_jax.inference.prefill import append_text
from omnizip_jax.inference.streaming import change_method, feed, feed_block, init_stream
from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM
from omnizip_jax.models.qwen2_5_omni.encoders import encode_window
from omnizip_jax.types import TokenKind, Window
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)
CAUSAL, STREAMED = OmniZipConfig(causal=True), OmniZipConfig()
QUESTION = "What happens?"


def begin(params, **settings):
    settings = {"capacity": 768, "text_slots": 192, "spec": SPEC, **settings}
    return init_stream(params, STREAMED, **settings)


def each(windows):
    return [jax.tree.map(lambda x, i=i: x[i], windows) for i in range(len(windows.mel_length))]


def newest(state):
    """Number of the last unit of the cache, -1 before the first window."""
    last = int(state.cache.length) - 1
    return int(state.state.slots.unit[last]) if state.state.unit > 0 else -1


def feed_all(params, state, windows):
    traces = []
    for window in each(windows):
        state = feed(params, state, window)
        traces.append(jax.tree.map(np.asarray, state.trace))
    return state, traces


def offline(params, windows, new_tokens, compression=CAUSAL):
    """``generate`` from given windows: logits of the first token, tokens, trace."""
    context = read(params, clip_of(windows, SPEC), compression)
    generation = begin_reply(params, context, QUESTION, SamplingParams(new_tokens))
    logits = np.asarray(generation.decode_state.logits)
    answer, _ = finish(params, run(params, generation))
    return logits, answer.token_ids, context.trace


CLIPS = {
    "one_window": ([2], [200]),
    "partial_tail": ([2, 2, 2, 1], [200, 200, 200, 77]),
    "sound_comes_and_goes": ([2, 2, 2, 2, 2], [200, 0, 0, 200, 40]),
    "picture_ends_early": ([2, 1, 0, 0], [200, 200, 200, 131]),
    "forty_windows": ([2] * 39 + [1], [200] * 39 + [120]),
}


@pytest.fixture
def first_logits(monkeypatch):
    """Catches the logits of the first token of an answer."""
    caught = []

    def spy(params, generation, *arguments):
        caught.append(np.asarray(generation.decode_state.logits))
        return run(params, generation, *arguments)

    monkeypatch.setattr("omnizip_jax.inference.generation.run", spy)
    return caught


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in ("one_window", "forty_windows") else ()
        )
        for name in CLIPS
    ],
)
def test_equals_generate(name, params, random_windows, first_logits):
    windows = random_windows(*CLIPS[name])
    logits, tokens, trace = offline(params, windows, 10)
    capacity = 4096 if name == "forty_windows" else 768
    state, traces = feed_all(params, begin(params, capacity=capacity), windows)
    answer, _ = ask(params, state, QUESTION, max_new_tokens=10)
    for i, found in enumerate(traces):
        np.testing.assert_array_equal(found.audio_keep, trace.audio_keep[i])
        np.testing.assert_array_equal(found.video_keep, trace.video_keep[i])
        np.testing.assert_allclose(found.video_rate, trace.video_rate[i], atol=1e-6)
    np.testing.assert_allclose(first_logits[0], logits, atol=1e-4)
    assert answer.token_ids == tokens
    assert answer.counts.audio_kept == trace.audio_keep.sum()
    assert answer.counts.video_kept == trace.video_keep.sum()


@pytest.mark.slow  # test_families has blocks of the other family
def test_a_block_of_windows_is_appended_like_single_ones(params, random_windows):
    """Its windows are encoded independently here, and the cache overflows inside the block."""
    windows = random_windows([2] * 8, [200] * 8)
    one_by_one, _ = feed_all(params, begin(params, capacity=768), windows)
    state = begin(params, capacity=768)
    for i in (0, 4):
        state = feed_block(params, state, jax.tree.map(lambda x, i=i: x[i : i + 4], windows))
    assert state.retained == one_by_one.retained
    np.testing.assert_array_equal(state.state.slots.time, one_by_one.state.slots.time)
    np.testing.assert_allclose(state.cache.keys, one_by_one.cache.keys, atol=1e-4)


@pytest.mark.parametrize(
    "given",
    [None, [], Window.empty(SPEC), Window.empty(SPEC, 0)],
    ids=["None", "a list", "one", "no window"],
)
def test_a_block_needs_windows(params, given):
    with pytest.raises(ValueError, match="takes several windows as one Window with a leading axis"):
        feed_block(params, begin(params), given)


@pytest.mark.slow  # conversations without sound are compared with transformers
def test_equals_generate_without_sound(params, random_windows, first_logits):
    windows = random_windows([2, 2, 1], [0, 0, 0])
    logits, tokens, _ = offline(params, windows, 6)
    state, _ = feed_all(params, begin(params, audio=False), windows)
    answer, _ = ask(params, state, QUESTION, max_new_tokens=6)
    np.testing.assert_allclose(first_logits[0], logits, atol=1e-4)
    assert answer.token_ids == tokens


@pytest.mark.slow  # another method
def test_full_tokens(params, random_windows, first_logits):
    windows = random_windows([2, 2], [200, 90])
    logits, tokens, _ = offline(params, windows, 6, compression=None)
    state = init_stream(params, None, capacity=768, text_slots=192, spec=SPEC)
    state, _ = feed_all(params, state, windows)
    answer, _ = ask(params, state, QUESTION, max_new_tokens=6)
    np.testing.assert_allclose(first_logits[0], logits, atol=1e-4)
    assert answer.token_ids == tokens and answer.counts.retained == 1


def test_an_answer_is_forgotten_unless_kept(params, random_windows):
    windows = each(random_windows([2] * 4, [200] * 4))
    plain, asked = begin(params), begin(params)
    for window in windows[:2]:
        plain, asked = feed(params, plain, window), feed(params, asked, window)
    first, asked = ask(params, asked, QUESTION, max_new_tokens=8)
    partial = jax.tree.map(np.asarray, windows[3]).replace(mel_length=np.int32(60))
    _, asked = ask(params, asked, QUESTION, max_new_tokens=8, window=partial)
    again, asked = ask(params, asked, QUESTION, max_new_tokens=8)
    assert again.token_ids == first.token_ids
    plain, asked = feed(params, plain, windows[2]), feed(params, asked, windows[2])
    length = int(plain.cache.length)
    assert int(asked.cache.length) == length
    np.testing.assert_array_equal(asked.cache.keys[:, :length], plain.cache.keys[:, :length])
    for name in ("time", "base", "after", "unit", "in_video", "seen", "kept"):
        assert np.array_equal(getattr(plain.state, name), getattr(asked.state, name)), name


@pytest.mark.slow
def test_kept_turns_read_like_one_conversation(params, random_windows, first_logits):
    """Against one prefill of the whole conversation, spelled out by hand."""
    windows = random_windows([2, 2, 2], [200, 200, 200])
    one, two, three = each(windows)
    state = feed(params, begin(params), one)
    first, state = ask(params, state, "What happens?", keep=True, max_new_tokens=5)
    second, state = ask(params, state, "And then?", keep=True, max_new_tokens=5)
    state = feed(params, feed(params, state, two), three)
    third, state = ask(params, state, "And now?", max_new_tokens=5)

    # The same conversation without compression of time: embeddings and positions laid out by
    # hand, and one prefill.
    from omnizip_jax.models import prompt as tmrope
    from omnizip_jax.models.decoder import Decoder, KVCache

    decoder, text = Decoder(params.config.text), {"params": params.weights["text"]}
    plan = CAUSAL.begin(encode_window(params.weights, one, params.config))
    parts, places, now, base = [], [], 0, None

    def say(words, shared=()):
        nonlocal now
        ids = params.tokenizer(words, add_special_tokens=False)["input_ids"]
        for i, token in enumerate(ids):
            now -= i in shared
            parts.append(decoder.apply(text, jnp.array([token]), method="embed"))
            places.append(np.full((3, 1), now))
            now += 1

    def show(window):
        nonlocal now, plan
        encoded = encode_window(params.weights, window, params.config)
        plan, trace = CAUSAL.step(plan, encoded, jax.random.key(0))
        keep = np.concatenate([trace.video_keep.reshape(-1), trace.audio_keep])
        features = jnp.concatenate([encoded.video.reshape(-1, 64), trace.audio])
        place = tmrope.window_positions(window, now, base, 16, 50)
        parts.append(features[keep])
        places.append(np.asarray(place)[:, keep])
        now += 50

    def answered(answer):
        ids = list(answer.token_ids)
        ended = ids[-1] in params.end_tokens
        return params.tokenizer.decode(ids) + ("" if ended else "<|im_end|>")

    opened, closed = "<|vision_bos|><|audio_bos|>", "<|audio_eos|><|vision_eos|>"
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    say(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\n")
    say(opened, shared={1})
    base = now
    show(one)
    say(f"{closed}What happens?{turn}", shared={1})
    say(f"{answered(first)}\n<|im_start|>user\nAnd then?{turn}")
    say(f"{answered(second)}\n<|im_start|>user\n")
    say(opened, shared={1})
    base = now
    show(two)
    show(three)
    say(f"{closed}And now?{turn}", shared={1})
    embeddings, positions = jnp.concatenate(parts), jnp.concatenate(places, axis=1)
    cache = KVCache.empty(params.config.text, len(embeddings))
    hidden, _ = decoder.apply(text, embeddings, positions, cache, fresh=True)
    logits = decoder.apply(text, hidden[-1:], method="logits")[0]
    np.testing.assert_allclose(first_logits[2], logits, atol=1e-4)
    assert third.token_ids[0] == int(jnp.argmax(logits))


@pytest.mark.parametrize("memory", [pytest.param("recent", marks=pytest.mark.slow), "fading"])
def test_a_full_cache_evicts_and_continues(params, random_windows, memory, first_logits):
    """Nothing differs until the first eviction; after it, length and positions stay in bounds."""
    windows = each(random_windows([2] * 6, [200] * 6))
    state = begin(params, capacity=768, memory=memory)
    # The larger cache has programs of its own: the comparison is part of the full tier.
    large = begin(params, capacity=4096, memory=memory) if memory == "recent" else None
    evicted = False
    for i in range(60):
        before = int(state.cache.length)
        window = windows[i % 6]
        state = feed(params, state, window)
        evicted |= int(state.cache.length) < before
        if not evicted and large is not None:
            large = feed(params, large, window)
            length = int(large.cache.length)
            assert length == int(state.cache.length)
            kept, unbounded = state.cache.keys[:, :length], large.cache.keys[:, :length]
            np.testing.assert_allclose(kept, unbounded, atol=1e-5)
        if i in (10, 30):
            _, state = ask(params, state, QUESTION, keep=i == 30, max_new_tokens=4)
        assert int(state.cache.length) + 192 <= 768
    assert evicted
    times = np.asarray(state.state.slots.time)[: int(state.cache.length)]
    units = np.unique(np.asarray(state.state.slots.unit)[: int(state.cache.length)])
    assert int(state.state.time) <= 50 * len(units) + 400 and (np.diff(times) >= 0).all()
    assert (memory == "fading") == (len(units) > 12)
    answer, _ = ask(params, state, QUESTION, max_new_tokens=4)
    assert (answer.counts.audio, answer.counts.video) == (60 * 50, 60 * 2 * 15)  # all that came
    assert len(answer.token_ids) == 4 and np.isfinite(first_logits[-1]).all()


def test_after_eviction_it_reads_as_if_begun_later(params, random_windows):
    """Positions after eviction are those of a stream that began with the oldest window left."""
    windows = each(random_windows([2] * 6, [200] * 6))
    state = begin(params, capacity=768)
    while True:
        before = newest(state)
        length = int(state.cache.length)
        state = feed(params, state, windows[int(state.state.windows) % 6])
        if int(state.cache.length) < length:
            break
        assert before < 200
    kinds = np.asarray(state.state.slots.kind)[: int(state.cache.length)]
    times = np.asarray(state.state.slots.time)[: int(state.cache.length)]
    begins = np.unique(times[kinds >= 3])
    np.testing.assert_array_equal(begins, int(state.state.origin) + 1 + 50 * np.arange(len(begins)))
    assert int(state.state.time) == begins[-1] + 50
    assert (
        np.asarray(state.state.slots.base)[: len(kinds)][kinds >= 3] == int(state.state.origin) + 1
    ).all()


@pytest.mark.slow
def test_positions_run_out_before_slots_do(params, random_windows):
    short = dataclasses.replace(params.config.text, max_positions=1200)
    params = dataclasses.replace(params, config=dataclasses.replace(params.config, text=short))
    empty = each(random_windows([0], [0]))[0]
    full = each(random_windows([2], [200]))[0]
    state = begin(params)
    for i in range(40):
        state = feed(params, state, full if i % 5 == 0 else empty)
        assert int(state.state.time) + 192 <= 1200
    _, state = ask(params, state, QUESTION, max_new_tokens=4)


def test_turns_leave_whole(params, random_windows):
    window = each(random_windows([2], [200]))[0]
    state = begin(params, capacity=768)
    for i in range(24):
        state = feed(params, state, window)
        if i % 4 == 0:
            _, state = ask(params, state, QUESTION, keep=True, max_new_tokens=4)
    kinds = np.asarray(state.state.slots.kind)[: int(state.cache.length)]
    units = np.asarray(state.state.slots.unit)[: int(state.cache.length)]
    sizes = [
        int((units[kinds == TokenKind.TEXT] == unit).sum())
        for unit in np.unique(units[kinds == TokenKind.TEXT])
    ]
    assert len(set(sizes)) <= 2  # all turns alike: with or without the end tokens of a video


def test_beginning_again_traces_nothing(params, monkeypatch):
    """A server begins sessions while others wait for the device."""
    begin = functools.partial(init_stream, params, OmniZipConfig(), spec=SPEC, capacity=768)
    first = begin(text_slots=256)
    monkeypatch.setattr(jax, "eval_shape", None)
    again = begin(text_slots=256)
    assert jax.tree.structure(first.state.plan) == jax.tree.structure(again.state.plan)


def test_one_trace_for_a_whole_stream(params, random_windows):
    windows = each(random_windows([2, 1, 0, 2], [200, 120, 200, 0]))
    state = begin(params, capacity=768, low_water=0.6)
    programs = None
    for i in range(40):
        state = feed(params, state, windows[i % 4])
        if i % 3 == 0:
            _, state = ask(params, state, QUESTION, keep=i % 6 == 0, max_new_tokens=3)
        if i == 14:
            programs = stream._feed._cache_size(), append_text._cache_size()
    assert programs == (stream._feed._cache_size(), append_text._cache_size())


BAD_WINDOWS = {
    "patches": lambda w: w.replace(patches=w.patches[:, :4]),
    "mel should": lambda w: w.replace(mel=w.mel.T),
    "grid_mask": lambda w: w.replace(grid_mask=w.grid_mask.astype(np.int32)),
    "NaN": lambda w: w.replace(mel=np.full_like(w.mel, np.nan)),
    "exceeds": lambda w: w.replace(grid_size=np.array([5, 5], np.int32)),
    "one window at a time": lambda w: jax.tree.map(lambda x: x[None], w),
}


@pytest.mark.parametrize("message", BAD_WINDOWS)
def test_bad_windows_leave_the_state_good(params, random_windows, message):
    good = each(random_windows([2], [200]))[0]
    state = feed(params, begin(params), good)
    with pytest.raises(ValueError, match=message):
        feed(params, state, BAD_WINDOWS[message](good))
    with pytest.raises(ValueError, match=message):
        ask(params, state, QUESTION, window=BAD_WINDOWS[message](good))
    assert int(feed(params, state, good).seen[0]) == 100


def test_bad_questions_leave_the_state_good(params, random_windows):
    state = feed(params, begin(params), each(random_windows([2], [200]))[0])
    for question, settings, message in (
        ("", {}, "question must be a text"),
        ("word " * 400, {}, "shorten the question"),
        (QUESTION, {"max_new_tokens": 1000}, "room for an answer"),
        (QUESTION, {"temperature": -1}, "temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(params, state, question, **settings)
    assert ask(params, state, QUESTION, max_new_tokens=2)[0].counts.generated == 2


def test_states_do_not_mix(params, random_windows):
    window = each(random_windows([2], [200]))[0]
    state = begin(params)
    other = jax.tree.map(lambda x: x + 1, params)
    with pytest.raises(ValueError, match="another model"):
        feed(other, state, window)
    fed = feed(params, state, window)
    with pytest.raises(ValueError, match="donated"):
        feed(params, state, window)
    assert int(fed.seen[0]) == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 300}, "too small"),
        ({"capacity": 10**6}, "positions"),
        ({"memory": "total"}, "recent"),
        ({"low_water": 1.5}, "low_water"),
        ({"spec": WindowSpec(seconds=4)}, "audio blocks"),
    ],
)
def test_bad_settings(params, settings, message):
    with pytest.raises(ValueError, match=message):
        begin(params, **settings)


def test_another_method_goes_on(params, random_windows):
    """What was read stays; the next window lies where a stream of the new method would have it."""
    windows = each(random_windows([2] * 3, [200] * 3))
    state, everything = (
        begin(params),
        init_stream(params, None, capacity=768, text_slots=192, spec=SPEC),
    )
    for window in windows[:2]:
        state, everything = feed(params, state, window), feed(params, everything, window)
    length, kept = int(state.cache.length), np.asarray(state.kept)
    before = np.asarray(state.cache.keys[:, :length])
    state = feed(params, change_method(params, state, None), windows[2])
    everything = feed(params, everything, windows[2])
    np.testing.assert_array_equal(state.cache.keys[:, :length], before)
    new = int(state.cache.length) - length
    assert new == (state.kept - kept).sum() == 50 + 2 * 15
    # The first layer's keys depend on tokens and positions alone.
    ends = [slice(int(x.cache.length) - new, int(x.cache.length)) for x in (state, everything)]
    first, second = (x.cache.keys[0, end] for x, end in zip((state, everything), ends, strict=True))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state.state.slots.unit[ends[0]], newest(state))


def test_a_changed_method_begins_anew(params, random_windows):
    """Before the first window a change leaves no trace; later the method's own past is gone."""
    windows = random_windows([2] * 3, [200] * 3)
    plain, expected = feed_all(params, begin(params), windows)
    changed = change_method(
        params, init_stream(params, None, capacity=768, text_slots=192, spec=SPEC), STREAMED
    )
    _, traces = feed_all(params, changed, windows)
    jax.tree.map(np.testing.assert_array_equal, traces, expected)
    _, (again, *_) = feed_all(params, change_method(params, plain, STREAMED), windows)
    jax.tree.map(np.testing.assert_array_equal, again, expected[0])


def test_what_no_stream_can_change_to(params, random_windows):
    state = begin(params, capacity=768, text_slots=415)
    refused = (
        (FastV(), "prunes inside the decoder"),
        (DyCoke(), "whole clip"),
        (None, "too small"),
    )
    for method, message in refused:
        with pytest.raises(ValueError, match=message):
            change_method(params, state, method)
    with pytest.raises(ValueError, match="no windows can be appended"):
        change_method(params, read(params, clip_of(random_windows([2], [200]), SPEC)), None)
    assert int(feed(params, state, each(random_windows([2], [200]))[0]).seen[0]) == 50


def test_the_published_rule_cannot_stream(params):
    with pytest.raises(ValueError, match="whole clip"):
        init_stream(params, OmniZipConfig.published(), spec=SPEC)
