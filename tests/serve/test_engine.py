"""One device for many: turns, bounds, and nothing that one of them does harms another."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest

from omnizip_jax import OmniZipConfig, ask, feed, init_stream, read
from omnizip_jax import fork as forked
from omnizip_jax import generate as generate_whole
from omnizip_jax.compression import AllTokens, FastV
from omnizip_jax.inference import generation as lanes
from omnizip_jax.inference.decode import DECODE_BLOCK, SamplingParams
from omnizip_jax.inference.generation import begin
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.failure import Failure
from omnizip_jax.serve.requests import (
    Answered,
    Asking,
    Begun,
    Piece,
    about_clips,
    about_stream,
    remembered,
)
from omnizip_jax.serve.session import Expired, WindowRead, WindowSkipped
from tests.conftest import clip_of
from tests.serve.conftest import LIMITS, WAIT

pytestmark = pytest.mark.slow  # many programs

SETTINGS = {"capacity": LIMITS.capacity, "text_slots": LIMITS.text_slots}
ASKING = Asking("What happens?", sampling_params=SamplingParams(12))


@pytest.fixture(scope="module")
def windows(random_windows):
    clip = random_windows([2, 2, 1, 2], [200, 200, 77, 200])
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], clip) for i in range(4)]


@pytest.fixture(scope="module")
def clip(random_windows):
    return clip_of(random_windows([2, 2, 1], [200, 200, 77]))


def lonely(params, windows, method=OmniZipConfig()):  # noqa: B008 (frozen)
    state = init_stream(params, method, **SETTINGS)
    for window in windows:
        state = feed(params, state, window)
    return state


def text_of(news):
    return "".join(one.text for one in news if isinstance(one, Piece))


@pytest.fixture
def gate(engine):
    """Holds the device until it is set."""
    gate, inside = threading.Event(), threading.Event()

    def steps():
        inside.set()
        gate.wait(WAIT)
        yield

    engine.submit(steps(), lambda _: None)
    assert inside.wait(WAIT)
    yield gate
    gate.set()


def test_sessions_read_and_answer_as_if_they_were_alone(engine, tiny, windows, heard):
    told = [heard(), heard()]
    sessions = [engine.open(told[0].put), engine.open(told[1].put, AllTokens())]
    for window in windows[:2]:
        for session in sessions:
            engine.push(session, window)
    alone = [lonely(tiny, windows[:2]), lonely(tiny, windows[:2], AllTokens())]
    for session, hears, state in zip(sessions, told, alone, strict=True):
        answer = heard()
        engine.submit(
            about_stream(engine, session, session.arrived, [], ASKING), answer.put, first=True
        )
        read_windows = [hears.next(), hears.next()]
        assert [one.number for one in read_windows] == [0, 1]
        assert sum(one.audio_kept for one in read_windows) == int(state.kept[0])
        assert sum(one.video_kept for one in read_windows) == int(state.kept[1])
        last = read_windows[-1]
        assert last.fill == state.fill and last.grid == (3, 5)
        assert "".join(last.kept).count("1") == last.video_kept
        assert last.heard.count("1") == last.audio_kept and len(last.heard) == last.audio
        news, failure = answer.all()
        expected, _ = ask(tiny, state, ASKING.question, max_new_tokens=12)
        assert failure is None and isinstance(news[0], Begun)
        assert text_of(news) == expected.text == news[-1].text
        assert isinstance(news[-1], Answered)
        assert (news[-1].made, news[-1].video_kept) == (
            expected.counts.generated,
            expected.counts.video_kept,
        )


def test_windows_before_a_question_count_and_later_ones_do_not(engine, gate, tiny, windows, heard):
    told, answer = heard(), heard()
    session = engine.open(told.put)
    engine.push(session, windows[0])
    engine.submit(about_stream(engine, session, 1, [windows[1]], ASKING), answer.put, first=True)
    engine.push(session, windows[2])
    gate.set()
    expected, _ = ask(tiny, lonely(tiny, windows[:2]), ASKING.question, max_new_tokens=12)
    assert answer.all()[0][-1].text == expected.text
    assert [told.next().number, told.next().number] == [0, 1]  # the partial one is forgotten


def test_windows_and_answers_take_turns(engine, gate, windows, heard):
    order, told = [], heard()

    def steps(name, count):
        for _ in range(count):
            order.append(name)
            yield

    session = engine.open(lambda news: (order.append("window"), told.put(news)))
    jobs = [engine.submit(steps(name, 6), lambda _: None) for name in "ab"]
    for window in windows[:2]:
        engine.push(session, window)
    gate.set()
    assert isinstance(told.next(), WindowRead) and isinstance(told.next(), WindowRead)
    assert all(job.finished.wait(WAIT) for job in jobs)
    first, second = (i for i, name in enumerate(order) if name == "window")
    assert first <= 2 and second - first == 2  # a step between two windows, and no more
    steps_alone = [name for name in order if name != "window"]
    assert steps_alone == ["a", "b"] * 6


def test_cancelling_ends_within_a_step(engine, heard):
    told, steps_made, inside, go_on = heard(), [], threading.Event(), threading.Event()

    def steps():
        try:
            while True:
                steps_made.append(0)
                inside.set()
                go_on.wait(WAIT)
                yield "news"
        finally:
            steps_made.append("closed")

    job = engine.submit(steps(), told.put)
    assert inside.wait(WAIT)
    job.cancel()
    go_on.set()
    assert job.finished.wait(WAIT)
    assert steps_made == [0, "closed"] and told.empty()


@pytest.fixture
def steps_made(monkeypatch):
    """How many answers went side by side in each step that made tokens."""
    counts, step_lanes = [], lanes.step_lanes

    def watched(params, replies):
        counts.append(len(replies))
        return step_lanes(params, replies)

    monkeypatch.setattr(lanes, "step_lanes", watched)
    return counts


def test_answers_go_side_by_side_and_none_is_another_for_it(
    engine, gate, steps_made, tiny, windows, heard
):
    """Of several sessions, to several questions, greedy and drawn, long and short."""
    decodings = [
        SamplingParams(20),
        SamplingParams(6),
        SamplingParams(20, temperature=1.3, top_p=0.9, seed=3),
    ]
    sessions, answers = [], []
    for number in range(2):
        sessions.append(engine.open(lambda _: None))
        for window in windows[: number + 1]:
            engine.push(sessions[number], window)
    for number, sampling_params in enumerate(decodings):
        answers.append(heard())
        session = sessions[number % 2]
        asking = Asking(f"What happens, {number}?", sampling_params=sampling_params)
        steps = about_stream(engine, session, session.arrived, [], asking)
        engine.submit(steps, answers[-1].put, first=True)
    gate.set()
    steps_alone = 0
    for number, (answer, sampling_params) in enumerate(zip(answers, decodings, strict=True)):
        state = lonely(tiny, windows[: number % 2 + 1])
        expected, _ = ask(
            tiny, state, f"What happens, {number}?", **dataclasses.asdict(sampling_params)
        )
        news, failure = answer.all()
        assert failure is None and news[-1].text == expected.text
        assert news[-1].made == len(expected.token_ids)
        steps_alone += -(-news[-1].made // DECODE_BLOCK)
    assert sum(steps_made) == engine.metrics.lanes._value.get() == steps_alone
    assert len(steps_made) < steps_alone - 1 and max(steps_made) == 2
    assert engine.metrics.answer_bytes._value.get() == 0


def test_a_cancelled_answer_leaves_its_lane_before_the_next_step(
    engine, gate, steps_made, tiny, windows, heard
):
    session, told = engine.open(lambda _: None), heard()
    engine.push(session, windows[0])
    jobs, answers = [], [heard(), heard()]
    asking = Asking("What happens?", sampling_params=SamplingParams(24))

    def hear(news):
        answers[0].put(news)
        if isinstance(news, Begun):
            return
        jobs[0].cancel()
        told.put(len(steps_made))

    for tell in (hear, answers[1].put):
        steps = about_stream(engine, session, 1, [], asking)
        jobs.append(engine.submit(steps, tell, first=True))
    gate.set()
    assert all(job.finished.wait(WAIT) for job in jobs)
    before = told.next()
    assert steps_made[before:] == [1] * (3 - before)  # the other one goes on alone
    expected, _ = ask(tiny, lonely(tiny, windows[:1]), asking.question, max_new_tokens=24)
    assert answers[1].all()[0][-1].text == expected.text
    assert engine.metrics.answer_bytes._value.get() == 0


def test_what_goes_wrong_for_lanes_is_told_to_all_of_them(
    engine, gate, windows, heard, monkeypatch
):
    session, answers = engine.open(lambda _: None), [heard(), heard()]
    engine.push(session, windows[0])
    for answer in answers:
        engine.submit(about_stream(engine, session, 1, [], ASKING), answer.put, first=True)
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "step_lanes", lambda *_: 1 / 0)
        gate.set()
        for answer in answers:
            assert answer.all()[1].status == 500
    again = heard()
    engine.submit(about_stream(engine, session, 1, [], ASKING), again.put, first=True)
    assert again.all()[0][-1].made > 0
    assert engine.metrics.answers._value.get() == engine.metrics.answer_bytes._value.get() == 0


def test_memory_of_answers_is_bounded(tiny, windows, heard):
    state = lonely(tiny, windows[:1])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    engine = Engine(tiny, OmniZipConfig(), dataclasses.replace(LIMITS, answer_bytes=2 * size))
    engine.start(warm=False)
    session, answers = engine.open(lambda _: None), [heard(), heard(), heard()]
    engine.push(session, windows[0])
    for answer in answers:
        engine.submit(about_stream(engine, session, 1, [], ASKING), answer.put, first=True)
    ended = [answer.all() for answer in answers]
    refused = [failure for _, failure in ended if failure is not None]
    assert len(refused) == 1 and refused[0].status == 503
    assert "answers hold 2 of 2 MiB, and this one wants 1; try again later" in str(refused[0])
    engine.close(WAIT)
    assert engine.metrics.answer_bytes._value.get() == 0


def test_windows_that_come_too_fast_are_dropped_and_told(engine, gate, windows, heard):
    told = heard()
    session = engine.open(told.put)
    for window in windows:
        engine.push(session, window)
    dropped = [told.next(), told.next()]
    assert dropped == [WindowSkipped(0, 1), WindowSkipped(1, 2)]
    gate.set()
    read_windows = [told.next(), told.next()]
    assert [(one.number, one.skipped) for one in read_windows] == [(2, 2), (3, 2)]


def test_what_exceeds_a_bound_is_refused(engine, gate):
    sessions = [engine.open(lambda _: None) for _ in range(LIMITS.sessions)]
    with pytest.raises(Failure, match="3 sessions are open; try again later") as refused:
        engine.open(lambda _: None)
    assert refused.value.status == 503
    engine.end(sessions[0])
    engine.end(engine.open(lambda _: None))
    gate.set()


def test_too_many_answers_are_refused(engine, gate):
    for _ in range(LIMITS.answers - 1):
        engine.submit(iter(()), lambda _: None)
    with pytest.raises(Failure, match="4 answers are in the making"):
        engine.submit(iter(()), lambda _: None)


def test_a_fork_goes_its_own_way(engine, tiny, windows, heard):
    told = heard()
    session = engine.open(told.put)
    engine.push(session, windows[0])
    told.next()
    copy = engine.fork(session, told.put)
    engine.push(copy, windows[1])
    assert told.next().number == 1
    for each, expected in ((session, windows[:1]), (copy, windows[:2])):
        answer = heard()
        engine.submit(about_stream(engine, each, each.arrived, [], ASKING), answer.put, first=True)
        alone, _ = ask(tiny, lonely(tiny, expected), ASKING.question, max_new_tokens=12)
        assert answer.all()[0][-1].text == alone.text


def test_an_idle_session_ends(tiny, heard):
    engine = Engine(tiny, OmniZipConfig(), dataclasses.replace(LIMITS, idle=0.5))
    engine.start(warm=False)
    told = heard()
    session = engine.open(told.put)
    assert "idle for 0.5 s" in told.next().reason and session.context is None
    answer = heard()
    engine.submit(about_stream(engine, session, 0, [], ASKING), answer.put, first=True)
    assert answer.all()[1].status == 404
    engine.close(WAIT)


def test_closing_finishes_answers_and_ends_sessions(tiny, windows, heard):
    engine = Engine(tiny, OmniZipConfig(), LIMITS)
    engine.start(warm=False)
    told, answer = heard(), heard()
    session = engine.open(told.put)
    engine.push(session, windows[0])
    engine.submit(about_stream(engine, session, 1, [], ASKING), answer.put, first=True)
    engine.close(WAIT)
    assert answer.all()[0][-1].made > 0
    assert isinstance(told.next(), WindowRead)
    assert told.next() == Expired("the server is closing")
    with pytest.raises(Failure, match="closing"):
        engine.open(told.put)


def test_a_bug_harms_nobody_else_and_says_nothing_of_itself(engine, heard, caplog):
    def broken():
        raise RuntimeError("secret")
        yield

    told, other = heard(), heard()
    engine.submit(broken(), told.put)
    engine.submit(iter(["news"]), lambda _: 1 / 0)  # nobody listens
    engine.submit(iter(["news"]), other.put)
    failure = told.all()[1]
    assert failure.status == 500 and "secret" not in str(failure)
    assert other.all() == (["news"], None) and "secret" in caplog.text


def test_clips_are_read_once(engine, tiny, clip, heard):
    expected = generate_whole(tiny, clip, ASKING.question, system=SYSTEM, max_new_tokens=12)
    for clips in ([clip], [], []):  # the second one needs no clip
        told = heard()
        steps = about_clips(engine, clips, [0], SYSTEM, OmniZipConfig(), ASKING, "key")
        engine.submit(steps, told.put)
        news, failure = told.all()
        assert failure is None and news[-1].text == expected.text
        assert news[-1].audio_kept == expected.counts.audio_kept
        assert news[-1].prompt == expected.counts.text + expected.counts.kept
    assert engine.metrics.clips_read._value.get() == 1
    assert engine.metrics.clips_remembered._value.get() == 2
    assert len(engine.contexts) == 1 and engine.contexts.bytes > 0


def test_a_method_with_stages(engine, tiny, clip, heard):
    told = heard()
    steps = about_clips(engine, [clip], [0], SYSTEM, FastV(keep=0.6), ASKING, "staged")
    engine.submit(steps, told.put)
    expected = generate_whole(
        tiny, clip, ASKING.question, compression=FastV(keep=0.6), system=SYSTEM, max_new_tokens=12
    )
    assert told.all()[0][-1].text == expected.text and len(engine.contexts) == 0


SYSTEM = "You are a camera."


def test_what_was_said_counts_as_if_it_had_been_answered(tiny, clip):
    context = read(tiny, clip)
    for length in range(1, 6):
        answer, after = ask(tiny, context, "Who?", keep=True, max_new_tokens=length)
        words = tiny.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        if tuple(words) == answer.token_ids:  # random models write what nobody would
            break
    else:
        pytest.skip("no answer that is written in one way")
    again = remembered(tiny, forked(context), "Who?", answer.text)
    replies = [begin(tiny, each, "And then?", SamplingParams(1)) for each in (after, again)]
    logits = [np.asarray(reply.decode_state.logits) for reply in replies]
    np.testing.assert_allclose(*logits, atol=1e-4)
    plain = begin(tiny, context, "And then?", SamplingParams(1))
    assert not np.allclose(logits[0], np.asarray(plain.decode_state.logits), atol=1e-3)
