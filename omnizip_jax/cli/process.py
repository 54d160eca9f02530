"""A command as a process: outputs that are closed, Ctrl-C at any moment, and the way out.

XLA compiles for seconds without letting Python hear of a Ctrl-C, and a ``KeyboardInterrupt`` that
is raised inside a callback is lost. Its threads, and FFmpeg's, may still run when a command ends;
taking down the interpreter beneath them ends in a segmentation fault.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from omnizip_jax.cli import cli

GRACE = 3.0  # s from Ctrl-C until a command that has not ended by itself is ended
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
READER_LEFT = 141  # as a shell reports a program that SIGPIPE has ended


def main() -> NoReturn:
    """The ``omnizip`` command."""
    run(cli.main)


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command as all that this process does, and leave with its exit code.

    After Ctrl-C the command has ``GRACE`` seconds to end in order; then, or at the second Ctrl-C,
    the process ends without it. Its exit code is 130 either way. Warnings are one line each.
    """
    if not _open_standard_streams():
        _say("standard output is closed; redirect it to a file or to /dev/null")
        _leave(1)
    warnings.showwarning = Warnings().show
    interrupt = Interrupt()
    code, failure = 1, None
    try:
        try:
            code = command()
        finally:
            interrupt.raises = False
    except SystemExit as end:  # of argparse
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        failure = error
    failure = _flush() or failure
    if interrupt.seen:
        if code != cli.STOPPED:
            _say("stopped")
        code = cli.STOPPED
    elif isinstance(failure, BrokenPipeError):
        code = READER_LEFT
    elif isinstance(failure, OSError) and failure.errno in UNWRITABLE:
        _say(f"writing failed: {failure.strerror}")
        code = 1
    elif failure is not None:
        code = 1
        traceback.print_exception(failure)
    _leave(code)


class Interrupt:
    """Hears Ctrl-C even while the main thread is in C++. Does nothing where it is ignored.

    Attributes:
        seen: there was one.
        raises: the first one raises ``KeyboardInterrupt`` in the main thread. While modules are
            imported it ends the process at once instead: there is nothing yet to put in order.
    """

    def __init__(self):
        self.seen, self.raises = False, True
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        self._put_back = _remember_terminal()
        self._hear, tell = socket.socketpair()
        tell.setblocking(False)
        self._tell = tell  # keeps it open
        signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        # What Ctrl-C turned into within a callback.
        sys.unraisablehook = self._unless_seen(sys.unraisablehook)
        sys.excepthook = self._unless_seen(sys.excepthook)
        threading.Thread(target=self._watch, daemon=True).start()

    def _handle(self, _: int, frame: FrameType | None) -> None:
        first, self.seen = not self.seen, True
        if _importing(frame):  # modules in C may abort if an exception comes in between
            self._last_words()
            _leave(cli.STOPPED)
        if first and self.raises:
            raise KeyboardInterrupt

    def _unless_seen(self, hook: Callable[..., None]) -> Callable[..., None]:
        return lambda *error: None if self.seen else hook(*error)

    def _watch(self) -> None:
        self._hear.recv(1)
        self._hear.settimeout(GRACE)
        with contextlib.suppress(TimeoutError):
            self._hear.recv(1)
        # From a thread of its own, as nobody may be reading what is written.
        last_words = threading.Thread(target=self._last_words, daemon=True)
        last_words.start()
        last_words.join(0.5)
        _leave(cli.STOPPED)

    def _last_words(self) -> None:
        with contextlib.suppress(Exception):
            self._put_back()
        os.write(2, b"omnizip: stopped\n")


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class Warnings:
    """Shows each warning once, as a line of the command's own, without file and line number."""

    def __init__(self):
        self._shown: set[str] = set()

    def show(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """In place of ``warnings.showwarning``."""
        line = " ".join(str(message).split())
        if line not in self._shown:
            self._shown.add(line)
            _say(line)


def _open_standard_streams() -> bool:
    """Fill closed ones, so that no file gets their number; returns whether stdout was open.

    What an output's encoding lacks is shown as question marks.
    """
    complete = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:  # print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end of the process)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    return complete


def _remember_terminal() -> Callable[[], None]:
    """How to put the terminal back: echo, and the cursor that a live screen hides."""

    def show_cursor() -> None:
        if os.isatty(1):
            os.write(1, b"\r\x1b[K\x1b[?25h")

    try:
        import termios
    except ImportError:  # not a POSIX system
        return show_cursor
    if not os.isatty(0):
        return show_cursor
    before = termios.tcgetattr(0)

    def put_back() -> None:
        if termios.tcgetattr(0) != before:  # setting it would halt a program in the background
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        show_cursor()

    return put_back


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"omnizip: {line}", file=sys.stderr, flush=True)


def _flush() -> OSError | None:
    """Write what is left; returns why standard output does not take it."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _leave(code: int) -> NoReturn:
    os._exit(code)
