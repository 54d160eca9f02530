"""The `omnizip` command as a process: dispatch, exit codes, Ctrl-C, and closed outputs.

XLA compiles for seconds without returning to Python, so Ctrl-C has no effect meanwhile, and a
``KeyboardInterrupt`` that is raised inside a callback is lost. XLA's and FFmpeg's threads may still
run when a command ends; finalising the interpreter under them ends in a segmentation fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from omnizip_jax.cli.arguments import build_parser, check_arguments

INTERRUPTED = 130  # exit code after Ctrl-C
CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE has ended
GRACE_SECONDS = 3.0  # from Ctrl-C until a command that has not ended is terminated
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
IMPORTLIB = "<frozen importlib._bootstrap>"  # file name of its frames
M_ARENA_MAX = -8  # of glibc's mallopt

_shown: set[str] = set()  # warnings printed so far
_shown_lock = threading.Lock()  # threads warn too


def entry_point() -> NoReturn:
    """The ``omnizip`` script."""
    run_process(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends with a message and exit code 1, Ctrl-C with 130.

    Raises:
        SystemExit: ``--help``, and arguments that cannot be parsed (exit code 2).
        OSError: an output cannot be written; ``run_process`` reports it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no warning that torch is missing
    try:
        arguments = build_parser().parse_args(argv)
        check_arguments(arguments)
        if arguments.command == "serve":
            limit_malloc_arenas()
        # Imported here: help and bad arguments do not wait for jax.
        module = importlib.import_module(f"omnizip_jax.cli.{arguments.module}")
        getattr(module, f"run_{arguments.command}")(arguments)
    except KeyboardInterrupt:
        print("omnizip: stopped", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        print(f"omnizip: {error}", file=sys.stderr)
        return 1
    return 0


def run_process(command: Callable[[], int]) -> NoReturn:
    """Run a command as the only work of this process, and exit with its code.

    After Ctrl-C the command has ``GRACE_SECONDS`` to end; then, or at the second Ctrl-C, the
    process is terminated. The exit code is 130 either way. Each warning is printed as one line.
    """
    if not _open_standard_streams():
        _report("standard output is closed; redirect it to a file or to /dev/null")
        os._exit(1)
    warnings.showwarning = show_warning
    interrupt = InterruptHandler()
    code, failure = 1, None
    try:
        try:
            code = command()
        finally:
            interrupt.raises = False
    except SystemExit as end:  # raised by argparse
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        failure = error
    failure = _flush() or failure
    if interrupt.received:
        if code != INTERRUPTED:
            _report("stopped")
        code = INTERRUPTED
    elif isinstance(failure, BrokenPipeError):
        code = CLOSED_PIPE
    elif isinstance(failure, OSError) and failure.errno in WRITE_ERRORS:
        _report(f"writing failed: {failure.strerror}")
        code = 1
    elif failure is not None:
        code = 1
        traceback.print_exception(failure)
    os._exit(code)


def limit_malloc_arenas(count: int = 2) -> None:
    """Let threads share glibc's malloc arenas; call it before threads start.

    glibc gives each thread its own arena, up to eight per core: the memory of a server with many
    short allocations in many threads grows for hours. No effect on other systems.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, count)


class InterruptHandler:
    """Handles Ctrl-C even while the main thread is in C++. Inactive where SIGINT is ignored.

    Attributes:
        received: there was a Ctrl-C.
        raises: the first one raises ``KeyboardInterrupt`` in the main thread. During an import it
            terminates the process instead: nothing needs cleaning up yet.
    """

    def __init__(self):
        self.received, self.raises = False, True
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        self._restore_terminal = _terminal_restorer()
        self._wakeup, sender = socket.socketpair()
        sender.setblocking(False)
        self._sender = sender  # a reference keeps it open
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        # Errors that follow from Ctrl-C inside a callback.
        sys.unraisablehook = self._unless_received(sys.unraisablehook)
        sys.excepthook = self._unless_received(sys.excepthook)
        threading.Thread(target=self._watch, daemon=True).start()

    def _handle(self, _: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, True
        importing = (
            each.f_code.co_filename == IMPORTLIB for each, _ in traceback.walk_stack(frame)
        )
        if any(importing):  # C extensions may abort if an exception interrupts their import
            self._report_and_restore()
            os._exit(INTERRUPTED)
        if first and self.raises:
            raise KeyboardInterrupt

    def _unless_received(self, hook: Callable[..., None]) -> Callable[..., None]:
        return lambda *error: None if self.received else hook(*error)

    def _watch(self) -> None:
        self._wakeup.recv(1)
        self._wakeup.settimeout(GRACE_SECONDS)
        with contextlib.suppress(TimeoutError):
            self._wakeup.recv(1)
        # In its own thread: writing blocks if nobody reads stderr.
        report = threading.Thread(target=self._report_and_restore, daemon=True)
        report.start()
        report.join(0.5)
        os._exit(INTERRUPTED)

    def _report_and_restore(self) -> None:
        with contextlib.suppress(Exception):
            self._restore_terminal()
        os.write(2, b"omnizip: stopped\n")


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning once, as one line without file and line number."""
    line = " ".join(str(message).split())
    with _shown_lock:
        if line in _shown:
            return
        _shown.add(line)
        _report(line)


def _open_standard_streams() -> bool:
    """Open closed standard streams on /dev/null, so that no file takes their descriptor.

    Characters that an output's encoding lacks are printed as question marks.

    Returns:
        Whether stdout was open.
    """
    stdout_open = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    if sys.stderr is None:  # print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end of the process)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    return stdout_open


def _terminal_restorer() -> Callable[[], None]:
    """A function that restores the terminal: echo, and the cursor that a live display hides."""

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

    def restore() -> None:
        if termios.tcgetattr(0) != before:  # setting it would stop a background process
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        show_cursor()

    return restore


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # closed
        print(f"omnizip: {line}\n", end="", file=sys.stderr, flush=True)  # one write: one line


def _flush() -> OSError | None:
    """Flush the outputs; returns the error of standard output, if any."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None
