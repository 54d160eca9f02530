"""Contexts: read once and ask often, dialogues, forks, growth, and what an error leaves behind."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax import (
    OmniZipConfig,
    WindowSpec,
    ask,
    feed,
    fork,
    init_stream,
    read,
    stream_answer,
)
from omnizip_jax import generate as generate_whole
from omnizip_jax.compression import AllTokens, Budget
from omnizip_jax.inference.chat_template import Modalities, segments
from omnizip_jax.inference.context import check_context
from omnizip_jax.inference.decode import SamplingParams, generate_tokens
from omnizip_jax.inference.generation import begin, finish, run
from omnizip_jax.inference.kv_cache_capacity import ensure_capacity
from omnizip_jax.inference.prefill import append_text, encode_clip, prefill_clip
from omnizip_jax.inference.sequence import pad_text
from omnizip_jax.inference.streaming import _feed
from omnizip_jax.models.qwen2_5_omni import DEFAULT_SYSTEM
from omnizip_jax.types import TokenKind, Window
from tests.conftest import clip_of

SPEC = WindowSpec(grid_slots=16)
QUESTION = "What happens?"
QUESTIONS = (QUESTION, "Who is it, and why?", QUESTION)
TOKENS = 6


@pytest.fixture(scope="module")
def windows(random_windows):
    return random_windows([2, 2, 1], [200, 200, 77])


@pytest.fixture(scope="module")
def clip(windows):
    return clip_of(windows)


@pytest.fixture(scope="module")
def clip_context(params, clip):
    return read(params, clip)


@pytest.fixture
def stream(params, windows):
    return fed(params, new_stream(params), windows, 2)


def new_stream(params, method=OmniZipConfig(), **settings):  # noqa: B008 (frozen)
    settings = {"capacity": 768, "text_slots": 192, "spec": SPEC, **settings}
    return init_stream(params, method, **settings)


def one(windows, i=0):
    return jax.tree.map(lambda x: np.asarray(x)[i], windows)


def fed(params, state, windows, count):
    for i in range(count):
        state = feed(params, state, one(windows, i % len(windows.mel_length)))
    return state


def plain(tree):
    """Leaves as numpy; random keys as their numbers."""
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_same(one, other):
    """Bit by bit, slots that are not in use excepted."""
    length = int(one.cache.length)
    assert length == int(other.cache.length)
    for name in ("keys", "values"):
        a, b = getattr(one.cache, name)[:, :length], getattr(other.cache, name)[:, :length]
        np.testing.assert_array_equal(a, b)
    slots = [jax.tree.map(lambda x: x[:length], c.state.slots) for c in (one, other)]
    rest = [c.state.replace(slots=None) for c in (one, other)]
    for a, b in zip(plain((slots[0], rest[0])), plain((slots[1], rest[1])), strict=True):
        np.testing.assert_array_equal(a, b)


def with_equal_norms(params):
    """Other weights, as of a fine-tune that leaves the norms."""

    def scaled(path, x):
        return x if "norm" in jax.tree_util.keystr(path) else x * 1.3

    text = jax.tree_util.tree_map_with_path(scaled, params.weights["text"])
    return params.replace(weights=params.weights | {"text": text})


def first_logits(params, context, question, **settings):
    return np.asarray(begin(params, context, question, **settings).decode_state.logits)


def test_asking_often_equals_generate_each_time(params, clip, clip_context):
    for question in QUESTIONS:
        answer, after = ask(params, clip_context, question, max_new_tokens=TOKENS)
        whole = generate_whole(params, clip, question, max_new_tokens=TOKENS)
        assert after is clip_context and answer.token_ids == whole.token_ids
        logits = first_logits(params, clip_context, question)
        alone = first_logits(params, read(params, clip, reserve=2048), question, copy=False)
        np.testing.assert_allclose(logits, alone, atol=1e-4)
        assert answer.counts.kept == whole.counts.kept


def test_text_alone(params):
    context = read(params, None)
    answer, context = ask(params, context, QUESTION, keep=True, max_new_tokens=TOKENS)
    assert answer.token_ids == generate_whole(params, None, QUESTION, max_new_tokens=6).token_ids
    again, _ = ask(params, context, "And then?", max_new_tokens=TOKENS)
    alone, _ = ask(params, read(params, None), "And then?", max_new_tokens=TOKENS)
    assert again.counts.text == alone.counts.text and context.seconds == 0
    assert not np.allclose(
        first_logits(params, context, "And then?"), first_logits(params, read(params, None), "?")
    )


def test_a_fork_lives_alone(params, stream, windows):
    before = plain(stream)
    other = fork(stream)
    fed_other = feed(params, other, one(windows, 2))
    _, asked = ask(params, fed_other, QUESTION, keep=True, max_new_tokens=TOKENS)
    for a, b in zip(plain(stream), before, strict=True):
        np.testing.assert_array_equal(a, b)
    third = fork(stream)
    again = feed(params, stream, one(windows, 2))
    assert_same(again, fed_other)
    for a, b in zip(plain(third), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(asked.cache.length) > int(again.cache.length)


def test_resizing_keeps_the_slots_in_use(clip_context):
    before, used = plain(clip_context), clip_context.used_slots
    large = ensure_capacity(fork(clip_context), clip_context.capacity, 0)
    assert large.capacity == 2 * clip_context.capacity
    for name in ("keys", "values"):
        old, new = (np.asarray(getattr(c.cache, name)) for c in (clip_context, large))
        np.testing.assert_array_equal(old[:, :used], new[:, :used])
    for a, b in zip(plain(clip_context), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # answers from two more cache sizes
def test_a_resized_cache_equals_one_that_had_the_capacity(params, clip, monkeypatch):
    for module in ("prefill", "kv_cache_capacity"):
        monkeypatch.setattr(f"omnizip_jax.inference.{module}.CACHE_BUCKETS", (768, 1536, 4096))
    small, large = read(params, clip, reserve=0), read(params, clip, reserve=2000)
    assert large.capacity > small.capacity
    question = "word " * 150 + "?"
    for keep in (True, False):
        one, small = ask(params, small, question, keep=keep, max_new_tokens=90)
        other, large = ask(params, large, question, keep=keep, max_new_tokens=90)
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(
            small.cache.keys[:, : small.used_slots],
            large.cache.keys[:, : large.used_slots],
            atol=1e-4,
        )
    assert small.capacity > read(params, clip, reserve=0).capacity


def test_pieces_and_leaving_early(params, stream, clip_context):
    for context in (stream, clip_context):
        before = plain(context)
        answer, _ = ask(params, context, QUESTION, max_new_tokens=20)
        pieces = stream_answer(params, context, QUESTION, max_new_tokens=20)
        assert "".join(pieces) == answer.text
        for _ in stream_answer(params, context, QUESTION, max_new_tokens=20):
            break
        with pytest.raises(ValueError, match="question must be a text"):
            stream_answer(params, context, " ")  # at once, not when pieces are taken
        for a, b in zip(plain(context), before, strict=True):
            np.testing.assert_array_equal(a, b)
        again, _ = ask(params, context, QUESTION, max_new_tokens=20)
        assert again.token_ids == answer.token_ids


class Broken(Exception):
    pass


def raises(error, at):
    """A callback that fails at its n-th piece."""
    count = 0

    def callback(_):
        nonlocal count
        count += 1
        if count == at:
            raise error

    return callback


FAILURES = {
    "first_piece": ({"on_text": lambda: raises(Broken(), 1)}, Broken),
    "later_piece": ({"on_text": lambda: raises(Broken(), 3)}, Broken),
    "interrupted": ({"on_text": lambda: raises(KeyboardInterrupt(), 2)}, KeyboardInterrupt),
    "no_callback": ({"on_text": lambda: 3}, ValueError),
    "seed": ({"seed": -1}, ValueError),
    "large_seed": ({"seed": 2**32}, ValueError),
    "temperature": ({"temperature": float("nan")}, ValueError),
    "top_p": ({"top_p": 0}, ValueError),
    "window": ({"window": "bad"}, ValueError),
    "shape_of_a_window": ({"window": lambda: Window.empty(SPEC, 2)}, ValueError),
    "params": ({"params": lambda: None}, ValueError),
    "question": ({"question": "word " * 60000}, ValueError),
    "no_text": ({"question": None}, ValueError),
    "tokens": ({"max_new_tokens": 3.0}, ValueError),
    "too_many_tokens": ({"max_new_tokens": 10**9}, ValueError),
    "keep": ({"keep": "yes"}, ValueError),
}


@pytest.mark.parametrize("keep", [False, True])
def test_an_error_leaves_the_context_as_it_was(params, stream, clip_context, windows, keep):
    other = params.replace(weights=jax.tree.map(lambda x: x + 1, params.weights))
    for context in (stream, clip_context):
        before = plain(context)
        for name, (settings, error) in FAILURES.items():
            made = {key: value() if callable(value) else value for key, value in settings.items()}
            asked = {"question": QUESTION, "max_new_tokens": 24, "keep": keep, **made}
            given = other if made.pop("params", params) is None else params
            asked.pop("params", None)
            with pytest.raises(error):
                ask(given, context, asked.pop("question"), **asked)
            for a, b in zip(plain(context), before, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
    never = fed(params, new_stream(params), windows, 2)
    _, after = ask(params, stream, QUESTION, keep=True, max_new_tokens=TOKENS)
    _, expected = ask(params, never, QUESTION, keep=True, max_new_tokens=TOKENS)
    assert_same(after, expected)
    assert_same(feed(params, after, one(windows)), feed(params, expected, one(windows)))
    assert_same(feed(params, stream, one(windows)), feed(params, never, one(windows)))


def test_an_interrupted_feed_says_that_the_state_is_used_up(params, stream, windows):
    feed(params, stream, one(windows))
    with pytest.raises(ValueError, match=r"donated.*continue with the state that it returned"):
        ask(params, stream, QUESTION)


def test_other_weights_are_refused_and_copies_are_not(params, clip_context):
    copied = params.replace(weights=jax.tree.map(jnp.copy, params.weights))
    check_context(copied, clip_context)
    with pytest.raises(ValueError, match="another model"):
        ask(with_equal_norms(params), clip_context, QUESTION)


def test_a_turn_without_reserved_slots_is_not_closed(params, stream):
    """Writing beyond a full cache would overwrite the last slots."""
    state = run(params, begin(params, stream, QUESTION, SamplingParams(TOKENS)))
    capacity = state.decode_state.cache.keys.shape[1]
    full = dataclasses.replace(state, begin=capacity - state.question - len(state.ids) - 1)
    with pytest.raises(ValueError, match=r"1 slots of the cache are free.*begin with keep=True"):
        finish(params, full, keep=True)


def test_a_question_follows_the_last_window_with_content(params, clip, clip_context):
    empty = Window.empty(clip.spec, 2)
    windows = jax.tree.map(lambda x, y: np.concatenate([x, y]), clip.windows, empty)
    windows = windows.replace(grid_size=np.tile(clip.windows.grid_size[:1], (5, 1)))
    context = read(params, dataclasses.replace(clip, windows=windows))
    assert int(context.state.after) == int(clip_context.state.after)
    assert int(context.state.time) == int(clip_context.state.time) + 2 * 50


def test_windows_belong_to_streams(params, clip_context, windows):
    with pytest.raises(ValueError, match="no windows can be appended"):
        feed(params, clip_context, one(windows))


@dataclasses.dataclass(frozen=True)
class TooLow(AllTokens):
    """Keeps more than it says."""

    def plan(self, audio_counts, video_counts):
        return Budget(1, 0, 1)

    def step_bound(self, audio_slots, video_slots):
        return 40


@dataclasses.dataclass(frozen=True)
class Lavish(AllTokens):
    """Says that it keeps all, and does."""


def test_a_bound_that_is_too_low_is_an_error(params, clip):
    with pytest.raises(ValueError, match=r"TooLow.*kept \d+ tokens more than its bound"):
        read(params, clip, TooLow())


@pytest.mark.slow  # programs of two more methods
def test_a_bound_that_is_too_low_is_an_error_everywhere(params, clip, windows):
    with pytest.raises(ValueError, match=r"TooLow.*kept \d+ tokens more than its bound"):
        generate_whole(params, clip, QUESTION, compression=TooLow())
    state = fed(params, new_stream(params, TooLow()), windows, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"TooLow.*kept \d+ tokens more than its bound"):
            ask(params, state, QUESTION)
    with pytest.raises(ValueError, match="more than its bound"):
        for _ in range(30):
            state = feed(params, state, one(windows))
    enough = fed(params, new_stream(params, Lavish()), windows, 1)
    assert ask(params, enough, QUESTION, max_new_tokens=2)[0].counts.retained == 1


@pytest.mark.parametrize("memory", [pytest.param("recent", marks=pytest.mark.slow), "fading"])
def test_turns_and_openings_never_overfill_a_cache(params, windows, memory):
    """A question after every window opens a video each time; a turn may be as large as it may."""
    state = new_stream(params, capacity=768, memory=memory, low_water=0.95, text_slots=160)
    quiet = one(windows).replace(mel_length=np.int32(8), grid_mask=np.zeros(2, bool))
    forgotten = False
    for i in range(40):
        before = int(state.cache.length)
        state = feed(params, state, one(windows) if i % 9 == 0 else quiet)
        question = "word " * 15 + "?" if i % 7 == 3 else "?"
        _, state = ask(params, state, question, keep=True, max_new_tokens=2)
        length = int(state.cache.length)
        forgotten |= length < before
        assert length == state.used_slots <= state.capacity == 768
        kinds = np.asarray(state.state.slots.kind)[:length]
        units = np.asarray(state.state.slots.unit)[:length]
        assert (np.diff(units) >= 0).all() and kinds[-1] == TokenKind.TEXT
    assert forgotten


def test_capacity_beyond_the_limit_is_an_error(params, clip_context, stream):
    """The cache is neither resized nor written beyond its end."""
    for context in (clip_context, stream):
        before = plain(context)
        with pytest.raises(ValueError, match="no capacity for"):
            ensure_capacity(fork(context), 10**9, 10**9)
        for a, b in zip(plain(context), before, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="text_slots 17000 are too many"):
        new_stream(params, capacity=32768, text_slots=17000)


@pytest.fixture
def watched(monkeypatch):
    """Weak references to the encoders' outputs, and how many live when decoding begins."""
    arrays, alive = [], []
    encode, decode = encode_clip, run

    def encoding(*given, **settings):
        encoded = encode(*given, **settings)
        arrays.extend(weakref.ref(x) for x in jax.tree.leaves(encoded))
        arrays.extend(weakref.ref(x) for x in (given[1].patches, given[1].mel))
        return encoded

    def decoding(*given):
        gc.collect()
        alive.append(sum(array() is not None for array in arrays))
        return decode(*given)

    monkeypatch.setattr("omnizip_jax.inference.prefill.encode_clip", encoding)
    monkeypatch.setattr("omnizip_jax.inference.api.run", decoding)
    return arrays, alive


@pytest.mark.slow
def test_pixels_and_features_are_gone_before_decoding(params, watched):
    arrays, alive = watched
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    sound = rng.standard_normal(30 * 16000).astype(np.float32) * 0.1
    video = (frames, 2.0, sound, 16000)
    answer = generate_whole(params, video, QUESTION, spec=SPEC, max_new_tokens=2)
    assert len(arrays) > 6 and alive == [0]
    assert answer.clip is not None and answer.clip.window_indices is not None
    assert len(answer.clip.windows.mel_length) == len(answer.clip.window_indices) == 8
    for leaf in jax.tree.leaves(answer.clip.windows):
        assert len(leaf) == 8 and (leaf.base is None or len(leaf.base) <= 8)
    assert len(answer.compression.audio_keep) == 15


@pytest.mark.slow
def test_sound_alone_opens_one_prompt_everywhere(params, random_windows):
    windows = random_windows([0, 0], [200, 120])
    state = fed(params, new_stream(params, None, video=False), windows, 2)
    context = read(params, clip_of(windows), None)
    assert int(state.cache.length) == int(context.cache.length)
    logits = [first_logits(params, c, QUESTION) for c in (state, context)]
    np.testing.assert_allclose(*logits, atol=1e-4)


def programs():
    return {
        program.__name__: program._cache_size()
        for program in (_feed, prefill_clip, append_text, generate_tokens)
    }


def use(params, windows, system, question, tokens):
    """A clip and a stream, each read and asked about."""
    clip = clip_of(windows)
    context = read(params, clip, system=system)
    ask(params, context, question, max_new_tokens=tokens, keep=True)
    state = fed(params, new_stream(params, system=system), windows, 2)
    _, state = ask(params, state, question, max_new_tokens=tokens, keep=True)
    feed(params, state, one(windows))


def blocks(params, system, question):
    """Padded lengths of what is read before and after a clip."""
    clip = segments(params.tokenizer, params.config, [Modalities(True, True), question], system)
    return [len(pad_text(text.tokens).tokens) for text in clip]


def test_words_and_weights_compile_nothing_anew(params, windows):
    words = {"system": DEFAULT_SYSTEM, "question": "Why?"}
    use(params, windows, **words, tokens=9)
    before = programs()
    tuned = params.replace(weights=jax.tree.map(lambda x: x * 1.01, params.weights))
    use(tuned, windows, **words, tokens=9)
    use(params, windows, **words, tokens=17)
    for name in words:
        longer = words | {name: words[name] + "!"}
        while blocks(params, **longer | {name: longer[name] + "!"}) == blocks(params, **words):
            longer[name] += "!"  # to the end of its block
        use(params, windows, **longer, tokens=9)
    assert programs() == before


@pytest.fixture
def no_reading(monkeypatch):
    """Reading from the device is an error; on a CPU the transfer guard sees nothing."""

    def refuse(_):
        raise AssertionError("read from the device")

    monkeypatch.setattr(type(jnp.zeros(())), "_value", property(refuse))
    with jax.transfer_guard_device_to_host("disallow"):
        yield


def test_feeding_reads_nothing_back(params, stream, windows, no_reading):
    with pytest.raises(AssertionError, match="read from the device"):
        int(stream.cache.length)
    for i in range(4):
        stream = feed(params, stream, one(windows, i % 3))


@pytest.mark.slow  # the parts in bfloat16 have quick tests of their own
def test_half_precision(params, windows, clip):
    """Generation, streams and eviction in bfloat16 against float32."""
    half = params.replace(
        weights=jax.tree.map(lambda x: x.astype(jnp.bfloat16), params.weights),
        dtype=jnp.dtype(jnp.bfloat16),
    )
    contexts, states = [], []
    for given in (params, half):
        contexts.append(read(given, clip))
        state = new_stream(given, text_slots=128)
        lengths = []
        for i in range(16):
            state = feed(given, state, one(windows, i % 3))
            lengths.append(int(state.cache.length))
        assert min(np.diff(lengths)) < 0  # it forgot
        _, state = ask(given, state, QUESTION, keep=True, max_new_tokens=4)
        states.append(feed(given, state, one(windows)))
    for single, other in (contexts, states):
        assert other.cache.keys.dtype == jnp.bfloat16
        np.testing.assert_array_equal(single.seen, other.seen)
        logits = first_logits(half, other, QUESTION, sampling_params=SamplingParams(8))
        assert logits.dtype == np.float32 and np.isfinite(logits).all()
        keep = [
            np.concatenate([x.trace.audio_keep, x.trace.video_keep], None) for x in (single, other)
        ]
        assert (keep[0] == keep[1]).mean() > 0.9
    np.testing.assert_array_equal(contexts[0].kept, contexts[1].kept)
    assert np.abs(np.subtract(*(np.asarray(x.kept) for x in states))).max() <= 25
    counts = [
        generate_whole(given, clip, QUESTION, max_new_tokens=TOKENS).counts
        for given in (params, half)
    ]
    assert dataclasses.replace(counts[0], generated=0) == dataclasses.replace(
        counts[1], generated=0
    )
