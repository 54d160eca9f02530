"""The command as a process: Ctrl-C at any moment, closed outputs, lines on stderr."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnizip_jax.cli.main import GRACE_SECONDS, show_warning
from omnizip_jax.testbed.synthetic_clips import make_clip

ROOT = Path(__file__).parents[2]
OMNIZIP = [sys.executable, "-m", "omnizip_jax"]
LIMIT = 5.0  # s from Ctrl-C to the end

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of POSIX")


def shell(redirection, *arguments):
    """Run ``omnizip`` with outputs redirected as a shell does."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *OMNIZIP, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def run_script(command, stdout=subprocess.PIPE, stdin=None):
    """Start a Python process whose work is the function ``command``, given as source."""
    source = f"from omnizip_jax.cli.main import run_process\n{command}\nrun_process(command)"
    return subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=ROOT,
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request, monkeypatch):
    """Without a buffer errors occur at once, otherwise at the end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.fixture
def ctrl_c():
    """Tests that run in the background ignore Ctrl-C, and so would their child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(0).write(tmp_path_factory.mktemp("clip") / "clip.mp4")


def stopped_while_compiling(arguments, folder, delay):
    """Ctrl-C ``delay`` seconds after the small model was written to an empty cache.

    Returns the exit code, stderr, and the seconds from Ctrl-C to the end.
    """

    environment = os.environ | {"XDG_CACHE_HOME": str(folder)}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(
        [*OMNIZIP, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
        **pipes,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(folder.glob("omnizip_jax/small-*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(delay)
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, err, time.monotonic() - began


def commands(clip, folder):
    return [
        ["demo", "--out", str(folder / "demo")],
        ["stream", str(clip), "--checkpoint", "small", "--capacity", "1024"],
        ["generate", str(clip), "What?", "--checkpoint", "small"],
    ]


def check_stopped(code, err, seconds):
    assert code == 130 and err.count("omnizip: stopped") == 1
    assert "Traceback" not in err and "Exception ignored" not in err
    assert seconds < LIMIT


@posix
@pytest.mark.parametrize(
    ("command", "delay"),
    [pytest.param(0, 3.0, id="demo", marks=pytest.mark.slow), pytest.param(1, 2.0, id="stream")],
)
def test_ctrl_c_while_compiling(ctrl_c, clip, tmp_path, command, delay):
    arguments = commands(clip, tmp_path)[command]
    check_stopped(*stopped_while_compiling(arguments, tmp_path, delay))


@pytest.mark.slow
@posix
@pytest.mark.parametrize("number", range(20))
def test_ctrl_c_at_any_moment(ctrl_c, clip, tmp_path, number):
    arguments = commands(clip, tmp_path)[number % 3]
    delay = random.Random(number).uniform(0, 8)
    check_stopped(*stopped_while_compiling(arguments, tmp_path, delay))


DEAF = """
import time
def command():
    while True:
        try:
            print("begins", flush=True)
            time.sleep(100)
        except KeyboardInterrupt:
            pass
"""


@posix
@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_ctrl_c_ends_the_process(ctrl_c, times):
    """The command continues, as after Ctrl-C in a callback; the second one ends it at once."""
    with run_script(DEAF) as process:
        process.stdout.readline()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        began = time.monotonic()
        _, err = process.communicate(timeout=20)
    check_stopped(process.returncode, err, time.monotonic() - began)
    assert (time.monotonic() - began < GRACE_SECONDS - 1) == (times == 2)


@posix
def test_ctrl_c_while_modules_are_imported(ctrl_c, tmp_path):
    """No exception is raised there: C extensions abort."""
    (tmp_path / "slow_to_import.py").write_text("""
import os, time
try:
    print("begins", flush=True)
    time.sleep(100)
except KeyboardInterrupt:
    os.abort()
""")
    command = f"""
import sys
sys.path.append({str(tmp_path)!r})
def command():
    import slow_to_import
"""
    with run_script(command) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = process.communicate(timeout=20)
    check_stopped(process.returncode, err, time.monotonic() - began)


@posix
def test_the_terminal_is_restored(ctrl_c):
    """Echo is on and the cursor is visible, though the command could not clean up."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = DEAF.replace("while True", "tty.setcbreak(0)\n    while True")
    with run_script("import tty" + command, stdin=theirs, stdout=theirs) as process:
        while b"begins" not in os.read(ours, 100):
            pass
        assert termios.tcgetattr(theirs) != before
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        process.communicate(timeout=20)
    assert process.returncode == 130 and termios.tcgetattr(theirs) == before
    assert b"\x1b[?25h" in os.read(ours, 100)
    os.close(ours)
    os.close(theirs)


@posix
@pytest.mark.parametrize(
    "then",
    [
        "raise RuntimeError('of the compiler')",
        "raise SystemExit(1)",
        "sys.excepthook(*sys.exc_info()); raise ImportError('a module in C')",
    ],
)
def test_errors_that_follow_from_ctrl_c_are_not_shown(ctrl_c, then):
    """A library may convert it to another error."""
    command = f"""
import sys, time
def command():
    try:
        print("begins", flush=True)
        time.sleep(100)
    except KeyboardInterrupt:
        {then}
"""
    with run_script(command) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = process.communicate(timeout=20)
    check_stopped(process.returncode, err, time.monotonic() - began)


def test_a_bug_keeps_its_traceback():
    with run_script("def command():\n    print('before')\n    return {}['key']") as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and out == "before\n"
    assert err.startswith("Traceback") and "KeyError" in err


def test_nothing_happens_after_the_command():
    """Running threads and exit handlers neither delay nor break the exit."""
    command = """
import atexit, threading, time
def command():
    atexit.register(print, "at exit")
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("done")
    return 3
"""
    with run_script(command) as process:
        assert process.communicate(timeout=20) == ("done\n", "") and process.returncode == 3


@posix
def test_closed_output():
    done = shell(">&-", "--help")
    assert done.returncode == 1 and done.stderr.startswith("omnizip: standard output is closed")
    assert len(done.stderr.splitlines()) == 1


@posix
def test_closed_messages():
    """Messages are not written to stdout; exit codes are unchanged."""
    for arguments, code in {
        ("--help",): 0,
        ("demo", "--seed", "x"): 2,
        ("convert", "a", "b"): 1,
    }.items():
        done = shell("2>&-", *arguments)
        assert done.returncode == code and "omnizip:" not in done.stdout and not done.stderr


PRINTS = "def command():\n    print('something')\n    return 0"


@posix
def test_full_output(buffering):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full, run_script(PRINTS, stdout=full) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == "omnizip: writing failed: No space left on device\n"


@posix
def test_closed_pipe(buffering):
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as pipe, run_script(PRINTS, stdout=pipe) as process:
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 141


def test_output_of_another_encoding(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with run_script("def command():\n    print('héard \\udcff')\n    return 0") as process:
        assert process.communicate(timeout=20) == ("h?ard ?\n", "")


def test_warnings_are_single_lines():
    command = """
import threading, warnings
def command():
    for level in (1, 2, 3):
        threading.Thread(target=warnings.warn, args=("cut off", UserWarning, level)).start()
    warnings.warn("another,\\\\nlonger one")
    return 0
"""
    with run_script(command.replace("\\\\", "\\")) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and not out
    assert sorted(err.splitlines()) == ["omnizip: another, longer one", "omnizip: cut off"]


def test_repeated_warnings_are_shown_once(capsys):
    for line in (1, 2):
        show_warning(UserWarning("cut off"), UserWarning, "file.py", line)
    assert capsys.readouterr().err == "omnizip: cut off\n"


def test_help_does_not_wait_for_jax():
    script = """
import sys
from omnizip_jax.cli.main import main
try:
    main(["--help"])
finally:
    assert not {"jax", "numpy", "transformers", "av"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
