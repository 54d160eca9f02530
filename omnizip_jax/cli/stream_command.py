"""``omnizip stream``: its live display or JSON lines, and questions typed at the terminal."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from omnizip_jax.cli.console import OutputConsole
from omnizip_jax.cli.model_setup import load_checkpoint, parse_method, window_spec
from omnizip_jax.cli.stream_loop import (
    AnswerEvent,
    EndEvent,
    Event,
    QuestionQueue,
    RefusedEvent,
    WindowEvent,
    feed_source,
    format_time,
    init_compiled_stream,
)
from omnizip_jax.media import windows

QUESTION_SLOTS = 384  # cache slots for a question with its chat template
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[@-~]|O.|.)?")  # arrow and function keys


def run_stream(arguments: argparse.Namespace) -> None:
    """Feed a source until it ends, and answer questions meanwhile."""
    method = parse_method(arguments.method, arguments.set)
    questions = QuestionQueue(arguments.ask)
    with contextlib.ExitStack() as stack:
        display = None if arguments.json else stack.enter_context(StreamDisplay())
        stack.enter_context(TypedLines(questions.put, display and display.show_typed))
        if display:
            display.show_step("loading the checkpoint")
        params = load_checkpoint(
            arguments.checkpoint,
            arguments.dtype,
            arguments.devices,
            arguments.cache_dtype,
            notice=False,
        )
        spec = window_spec(arguments, params.config.spec)
        source = stack.enter_context(
            windows(
                arguments.source,
                spec,
                use_audio=not arguments.no_audio,
                use_video=not arguments.no_video,
                audio_stream=arguments.audio_stream,
                video_stream=arguments.video_stream,
                audio=arguments.sound,
                timeout=arguments.timeout,
                realtime=arguments.realtime,
                when_slow=arguments.when_slow,
            )
        )
        if display:
            display.show_step("compiling (kept for the next time)")
        state = init_compiled_stream(
            params,
            method,
            capacity=arguments.capacity,
            memory=arguments.memory,
            text_slots=arguments.max_new_tokens + QUESTION_SLOTS,
            audio=source.has_audio,
            video=source.has_video,
            spec=spec,
            system=arguments.system,
        )
        feed_source(
            params,
            state,
            source,
            questions,
            display or print_json,
            on_text=display and display.add_text,
            keep=arguments.keep,
            max_new_tokens=arguments.max_new_tokens,
        )


def print_json(event: Event) -> None:
    """Print an event as one line of JSON: its name as "event", and its fields."""
    fields = dataclasses.asdict(event).items()
    rounded = {name: round(x, 4) if isinstance(x, float) else x for name, x in fields}
    name = type(event).__name__.removesuffix("Event").lower()
    print(json.dumps({"event": name, **rounded}), flush=True)


class StreamDisplay:
    """Answers, and below them live lines. A context manager.

    The live lines are ``answer`` (while it is generated), ``window`` (time, kept tokens, cache,
    speed, or the current step), ``note``, and ``typed``.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or OutputConsole()
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._lines: dict[str, Text] = {}

    def __enter__(self) -> StreamDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def update(self, **lines: Text) -> None:
        """Replace live lines, by name; empty ones are not shown."""
        self._lines |= lines
        names = ("answer", "window", "note", "typed")
        self._live.update(Group(*(self._lines[name] for name in names if self._lines.get(name))))

    def show_step(self, text: str) -> None:
        """Show the current step before the first window."""
        self.update(window=Text(text, "dim"))

    def add_text(self, piece: str) -> None:
        """Append a piece of the answer that is generated."""
        self.update(answer=self._lines.get("answer", Text()) + Text(piece))

    def show_typed(self, text: str) -> None:
        """Show the line that is being typed."""
        self.update(typed=Text(text and f"> {text}"))

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, WindowEvent):
            self.update(window=_window_line(event))
        elif isinstance(event, AnswerEvent):
            self.update(answer=Text())
            self._console.print(_reply(event, event.text, ""))
        elif isinstance(event, RefusedEvent):
            self._console.print(_reply(event, event.message, "red"))
        else:
            self.update(window=Text(), note=Text())
            self._console.print(Text(_summary(event), "dim"))


def _summary(event: EndEvent) -> str:
    if not event.windows:
        return f"[{format_time(event.time)}] {event.reason}: no window was read"
    parts = [
        f"{event.windows} windows",
        f"kept {event.kept:,} of {event.media:,} tokens = {_share(event.kept, event.media)} "
        f"(audio {_share(event.audio_kept, event.audio)}, "
        f"video {_share(event.video_kept, event.video)})",
        f"{event.milliseconds:.0f} ms a window = {event.real_time_factor:.1f}x real time",
    ]
    counts = {
        "skipped": event.skipped,
        "incomplete": event.incomplete,
        "late frames": event.late_frames,
        "answers": event.answers,
    }
    parts += [f"{name} {number}" for name, number in counts.items() if number]
    return f"[{format_time(event.time)}] {event.reason}: {'; '.join(parts)}"


def _window_line(event: WindowEvent) -> Text:
    speed = f"{event.real_time_factor:.1f}x real time"
    line = Text.assemble(
        (format_time(event.time), "bold"),
        f"  kept {_share(event.kept, event.media)}  cache {event.fill:.0%}",
        f"  {event.milliseconds:.0f} ms/window  ",
        (speed, "" if event.real_time_factor >= 1 else "red"),
    )
    if event.skipped:
        line.append(f"  skipped {event.skipped}", "red")
    return line


def _reply(event: AnswerEvent | RefusedEvent, text: str, style: str) -> Text:
    return Text.assemble((f"[{format_time(event.time)}] {event.question}\n", "bold"), (text, style))


def _share(kept: int, total: int) -> str:
    return f"{kept / total:.0%}" if total else "-"


class TypedLines:
    """Lines typed at the terminal, or piped in, while the program is busy. A context manager.

    Standard input is not read if it is closed, or a terminal of another foreground process group.

    A terminal delivers single keys without echo, because the live display redraws; ``on_change``
    receives the line that is being typed. Backspace and Ctrl-U edit it.

    Args:
        on_line: called from another thread with every line.
        on_change: called with the unfinished line after every key.
    """

    def __init__(
        self, on_line: Callable[[str], None], on_change: Callable[[str], None] | None = None
    ):
        self._on_line, self._on_change = on_line, on_change
        self._restore: Callable[[], None] | None = None
        self._done = threading.Event()

    def __enter__(self) -> TypedLines:
        try:
            number = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):  # none, or closed
            return self
        if os.isatty(number):
            if not _foreground(number):
                return self
            self._restore = _without_echo(number)
        threading.Thread(target=self._read, args=(number,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        if self._restore:
            self._restore()

    def _read(self, number: int) -> None:
        # Not sys.stdin.readline: it holds a lock that the interpreter acquires when it exits.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        line = ""
        while not self._done.is_set():
            try:
                data = os.read(number, 4096)
            except OSError:
                data = b""
            for key in _ESCAPES.sub("", decoder.decode(data, final=not data)):
                if key in "\r\n":
                    self._on_line(line)
                line = _edit(line, key)
            if not data:
                break
            if self._on_change and not self._done.is_set():
                self._on_change(line)
        if line:
            self._on_line(line)


def _edit(line: str, key: str) -> str:
    if key in "\r\n\x15":  # Return, Ctrl-U
        return ""
    if key in "\x7f\b":
        return line[:-1]
    return line + key if key.isprintable() else line


def _foreground(number: int) -> bool:
    try:
        return os.tcgetpgrp(number) == os.getpgrp()
    except (AttributeError, OSError):  # not a POSIX system; no controlling terminal
        return not hasattr(os, "tcgetpgrp")


def _without_echo(number: int) -> Callable[[], None] | None:
    """Deliver keys at once and without echo, Ctrl-C excepted; returns a function that undoes it."""
    try:
        import termios
        import tty
    except ImportError:
        return None
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    return lambda: termios.tcsetattr(number, termios.TCSADRAIN, before)
