"""What a stream looks like in a terminal and to a machine, and the questions typed into it."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from omnizip_jax.cli.follow import Answered, Ended, Event, Refused, WindowRead
from omnizip_jax.cli.times import clock

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[@-~]|O.|.)?")  # arrows and the like
_NAMES = {WindowRead: "window", Answered: "answer", Refused: "refused", Ended: "end"}


def print_json(event: Event) -> None:
    """One JSON object in one line: "event" says which, the rest are the event's fields."""
    fields = dataclasses.asdict(event).items()
    rounded = {name: round(x, 4) if isinstance(x, float) else x for name, x in fields}
    print(json.dumps({"event": _NAMES[type(event)], **rounded}), flush=True)


class Terminal(Console):
    """Where people read. When the reader of a pipe has left, that is an error as any other."""

    def on_broken_pipe(self) -> None:
        raise


class Screen:
    """One live line below the answers: time, tokens kept, cache, speed. A context manager."""

    def __init__(self, console: Console | None = None):
        self._console = console or Terminal()
        self._live = Live(console=self._console, transient=True, refresh_per_second=8)
        self._line: Text | str = ""
        self._answer = self._typed = ""
        self._note: Text | str = ""

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def status(self, text: str) -> None:
        """Say what is going on while there are no windows."""
        self._line = Text(text, "dim")
        self._draw()

    def note(self, line: Text) -> None:
        """Show a line below that of the windows."""
        self._note = line
        self._draw()

    def text(self, piece: str) -> None:
        """Show an answer as it is made."""
        self._answer += piece
        self._draw()

    def typed(self, text: str) -> None:
        """Show what is being typed."""
        self._typed = text
        self._draw()

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        if isinstance(event, WindowRead):
            self._line = _line(event)
        elif isinstance(event, Answered):
            self._answer = ""
            self._console.print(_said(event, event.text, ""))
        elif isinstance(event, Refused):
            self._console.print(_said(event, event.message, "red"))
        else:
            self._line = self._note = ""
            self._console.print(Text(summary(event), "dim"))
        self._draw()

    def _draw(self) -> None:
        parts = [
            self._answer and Text(self._answer),
            self._line,
            self._note,
            self._typed and f"> {self._typed}",
        ]
        self._live.update(Group(*(part for part in parts if part)))


def summary(event: Ended) -> str:
    """The whole stream in a few words."""
    if not event.windows:
        return f"[{clock(event.time)}] {event.reason}: no window was read"
    kept, seen = event.audio_kept + event.video_kept, event.audio + event.video
    parts = [
        f"{event.windows} windows",
        f"kept {kept:,} of {seen:,} tokens = {_share(kept, seen)} "
        f"(audio {_share(event.audio_kept, event.audio)}, "
        f"video {_share(event.video_kept, event.video)})",
        f"{event.milliseconds:.0f} ms a window = {event.real_time_factor:.1f}x real time",
    ]
    lost = {
        "skipped": event.skipped,
        "incomplete": event.incomplete,
        "late frames": event.late_frames,
    }
    parts += [f"{name} {number}" for name, number in lost.items() if number]
    if event.answers:
        parts.append(f"answers {event.answers}")
    return f"[{clock(event.time)}] {event.reason}: {'; '.join(parts)}"


def _line(event: WindowRead) -> Text:
    kept, seen = event.audio_kept + event.video_kept, event.audio + event.video
    speed = f"{event.real_time_factor:.1f}x real time"
    line = Text.assemble(
        (clock(event.time), "bold"),
        f"  kept {_share(kept, seen)}  cache {event.fill:.0%}",
        f"  {event.milliseconds:.0f} ms/window  ",
        (speed, "" if event.real_time_factor >= 1 else "red"),
    )
    if event.skipped:
        line.append(f"  skipped {event.skipped}", "red")
    return line


def _said(event: Answered | Refused, text: str, style: str) -> Text:
    time = f"[{clock(event.time)}]"
    return Text.assemble((f"{time} {event.question}\n", "bold"), (f"{text}", style))


def _share(kept: int, seen: int) -> str:
    return f"{kept / seen:.0%}" if seen else "-"


class Typing:
    """Lines typed at the terminal, or piped in, while the program is busy. A context manager.

    A terminal gives its keys one by one and does not echo them, for its screen changes all the
    time; what is being typed goes to ``on_change`` instead. Backspace and Ctrl-U work.

    Args:
        on_line: called from another thread with every line.
        on_change: called with what has been typed of the next one.
        stdin: where from; nothing is read if it is closed, or a terminal whose foreground is
            another program's.
    """

    def __init__(
        self,
        on_line: Callable[[str], None],
        on_change: Callable[[str], None] | None = None,
        stdin: IO | None = None,
    ):
        self._on_line, self._on_change = on_line, on_change
        self._stdin = sys.stdin if stdin is None else stdin
        self._restore: Callable[[], None] | None = None
        self._done = threading.Event()

    def __enter__(self) -> Typing:
        try:
            number = self._stdin.fileno()
        except (AttributeError, OSError, ValueError):  # there is none, or it is closed
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
        # Not sys.stdin.readline: it would hold a lock that the interpreter wants at its end.
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
    """Get keys at once and unseen; Ctrl-C still works. Returns how to undo it."""
    try:
        import termios
        import tty
    except ImportError:
        return None
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    return lambda: termios.tcsetattr(number, termios.TCSADRAIN, before)
