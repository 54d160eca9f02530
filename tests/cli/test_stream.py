"""The command ``stream``: times of answers, JSON lines, typed questions, and ways to end."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import numpy as np
import pytest

from benchmarks.bouncing_clip import write_clip
from omnizip_jax import OmniZipConfig, PushSource, windows
from omnizip_jax.cli import stream_loop
from omnizip_jax.cli.arguments import END_OF_STREAM, parse_time
from omnizip_jax.cli.main import main
from omnizip_jax.cli.stream_command import TypedLines
from omnizip_jax.cli.stream_loop import (
    AnswerEvent,
    QuestionQueue,
    RefusedEvent,
    RetentionLog,
    WindowEvent,
    feed_source,
    format_time,
    init_compiled_stream,
)
from omnizip_jax.media import WindowStream

SETTINGS = {"capacity": 2048, "text_slots": 400}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip of five windows, the last one half full."""
    return write_clip(tmp_path_factory.mktemp("live") / "clip.mp4", seconds=9, size=(96, 64))


@pytest.fixture
def stream(checkpoint, clip, capsys):
    """Runs ``omnizip stream``; returns exit code, stdout and stderr."""

    def run(*arguments, source=None):
        model = ("--checkpoint", str(checkpoint), "--capacity", "2048")
        settings = ("--max-new-tokens", "16", *arguments)
        code = main(["stream", str(source or clip), *model, *settings])
        return code, *capsys.readouterr()

    return run


def events_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_answers_come_at_their_time(stream):
    code, out, _ = stream(
        *("--json", "--ask", "end", "And now?"),
        *("--ask", "00:04", "What happens?", "--ask", "4.5", "word " * 400),
    )
    events = events_of(out)
    assert code == 0
    # Asked at 4 s, after two windows; at 4.5 s, in the third; and after the last.
    assert [(event["event"], event["time"]) for event in events] == [
        *[("window", 2), ("window", 4), ("answer", 4), ("window", 6), ("refused", 6)],
        *[("window", 8), ("window", 10), ("answer", 10), ("end", 10)],
    ]
    read = [event for event in events if event["event"] == "window"]
    end, answers = events[-1], [event for event in events if event["event"] == "answer"]
    assert [answer["question"] for answer in answers] == ["What happens?", "And now?"]
    assert all(answer["text"] and answer["tokens"] <= 16 for answer in answers)
    assert "shorten the question" in events[4]["message"]
    assert end["reason"] == "end" and end["windows"] == 5 and end["answers"] == 2
    for name in ("audio", "audio_kept", "video", "video_kept"):
        assert end[name] == sum(window[name] for window in read)
    fills = [window["fill"] for window in read]
    assert fills == sorted(fills) and 0 < fills[0] < fills[-1] < 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["stream", "--help"])
    assert stop.value.code == 0 and "--realtime" in capsys.readouterr().out


def test_terminal_output(stream):
    code, out, err = stream("--ask", "2", "What happens?", "--keep")
    assert code == 0 and not err
    assert "[00:02] What happens?" in out and "[00:10] end: 5 windows; kept" in out


def test_questions_are_taken_from_a_pipe(stream, monkeypatch):
    reads, writes = os.pipe()
    os.write(writes, "What is héard?\n\nAnd seen?".encode())
    os.close(writes)
    with os.fdopen(reads) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        _, out, _ = stream("--json")
    asked = {event["question"] for event in events_of(out) if event["event"] == "answer"}
    assert asked == {"What is héard?", "And seen?"}


@pytest.mark.parametrize(
    ("error", "code", "message", "reason"),
    [(KeyboardInterrupt, 130, "stopped", "stopped"), (ValueError("broken"), 1, "broken", "error")],
)
def test_ctrl_c_and_errors_end_in_order(stream, monkeypatch, error, code, message, reason):
    fed = []

    def feed(params, state, window):
        if len(fed) == 3:  # the first one only compiles
            raise error
        fed.append(window)
        return original(params, state, window)

    original = stream_loop.feed
    monkeypatch.setattr(stream_loop, "feed", feed)
    before = threading.active_count()
    found, out, err = stream("--json")
    assert found == code and message in err
    end = events_of(out)[-1]
    assert end["event"] == "end" and end["reason"] == reason and end["windows"] == 2
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("no.mp4", (), "no.mp4"),
        (None, ("--ask", "noon", "Why?"), "MM:SS"),
        (None, ("--capacity", "300"), "too small"),
        (None, ("--method", "published"), "whole clip"),
        (None, ("--timeout", "-1"), "timeout"),
    ],
)
def test_bad_input_is_one_message(stream, source, arguments, message):
    code, out, err = stream(*arguments, source=source)
    assert code == 1 and message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and not out.strip()


def test_a_source_that_breaks_off_is_an_error(stream, monkeypatch):
    """Earlier windows are fed; then its message, and exit code 1."""

    def breaks_off(self):
        if self.emitted == 2:
            raise ValueError(f"{self.name}: the connection was reset")
        return given(self)

    given = WindowStream.__next__
    monkeypatch.setattr(WindowStream, "__next__", breaks_off)
    code, out, err = stream("--json", "--ask", "end", "Why?")
    events = events_of(out)
    assert code == 1 and "clip.mp4: the connection was reset" in err
    assert len(err.splitlines()) == 1
    assert [event["event"] for event in events] == ["window", "window", "end"]
    assert events[-1]["reason"] == "error" and events[-1]["windows"] == 2


def test_questions_that_are_not_unicode_are_refused_and_the_stream_continues(tiny, clip):
    source = windows(clip, tiny.config.spec)
    state = init_compiled_stream(tiny, OmniZipConfig(), **SETTINGS)
    events = []
    questions = QuestionQueue([(2, "Wh\udcff?"), (4, "Why?")])
    feed_source(tiny, state, source, questions, events.append, max_new_tokens=2)
    refused, answered = (e for e in events if isinstance(e, RefusedEvent | AnswerEvent))
    assert "not Unicode text" in refused.message and answered.question == "Why?"
    assert events[-1].reason == "end" and events[-1].windows == 5


def test_skipped_windows_are_reported(tiny):
    """Pushed arrays, and a consumer that cannot keep up."""
    source = PushSource()
    stream = windows(source, tiny.config.spec, queue=1, when_slow="skip", use_video=False)
    source.push_audio(np.zeros(16_000 * 20, np.float32))
    source.close()
    while stream.skipped < 9:
        time.sleep(0.01)
    state = init_compiled_stream(tiny, OmniZipConfig(), **SETTINGS)
    events = []
    feed_source(
        tiny,
        state,
        stream,
        QuestionQueue([(END_OF_STREAM, "Why?")]),
        events.append,
        max_new_tokens=2,
    )
    read, answered, ended = events
    assert read.time == 20 and read.skipped == ended.skipped == 9
    assert answered.time == 20 and ended.windows == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("00:30", 30),
        ("1:02:03", 3723),
        ("90:00", 5400),
        ("0:01.5", 1.5),
        ("end", END_OF_STREAM),
    ],
)
def test_parse_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "noon", "-3", "1:-2", "1:60", "1:2:3:4", "1.5:00", "nan"])
def test_parse_time_refuses(text):
    with pytest.raises(ValueError, match="MM:SS"):
        parse_time(text)


def test_format_time():
    assert [format_time(x) for x in (0, 59.9, 90, 3723)] == ["00:00", "00:59", "01:30", "1:02:03"]


def test_typing_at_a_terminal():
    """Single keys, edited, without echo; the terminal is restored at the end."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    lines, shown, done = [], [], threading.Event()

    def on_line(line):
        lines.append(line)
        done.set()

    with os.fdopen(slave) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnizip_jax.cli.stream_command._foreground", lambda number: True)
        patch.setattr("sys.stdin", terminal)
        with TypedLines(on_line, shown.append):
            os.write(master, b"nonsense\x15What is ther\x1b[Dez\x7f?\n")
            assert done.wait(5)
            assert not termios.tcgetattr(slave)[3] & termios.ECHO
        assert termios.tcgetattr(slave) == before
        os.close(master)  # ends the thread
    assert lines == ["What is there?"]


def test_inputs_without_a_file_descriptor_are_not_read(monkeypatch):
    with open(os.devnull) as closed:
        pass
    for stdin in (io.StringIO("What?\n"), closed):
        monkeypatch.setattr("sys.stdin", stdin)
        with TypedLines(pytest.fail):
            pass


def test_retained_tokens_of_every_window_are_counted(tiny, clip):
    """A large cache evicts nothing, also with an answer between the windows."""
    state = init_compiled_stream(tiny, OmniZipConfig(), **SETTINGS)
    events, log = [], RetentionLog()
    feed_source(
        tiny, state, windows(clip, tiny.config.spec), QuestionQueue([(4, "Why?")]), events.append,
        on_state=log, keep=True, max_new_tokens=2,
    )  # fmt: skip
    read = [event for event in events if isinstance(event, WindowEvent)]
    kept = [event.audio_kept + event.video_kept for event in read]
    assert log.retained == [kept[: i + 1] for i in range(5)] and min(kept) > 0
    assert log.count(slice(1, 3)) == (sum(kept[1:3]), sum(kept[1:3]))
    assert log.bars(7) == "█████··"
