"""Fifty bad command lines, as processes: each ends soon, with its own message."""

from __future__ import annotations

import collections
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from omnizip_jax.checkpoint.atomic_directory import MARKER
from omnizip_jax.checkpoint.folder import WEIGHTS
from omnizip_jax.checkpoint.small_model import RELEASED, small_checkpoint
from omnizip_jax.testbed.synthetic_clips import make_clip
from tests.forked_command import start_command

ROOT = Path(__file__).parents[2]
LIMIT = 60  # s

SMALL = "--checkpoint small"
# The command line, and a name in the message. {here} is a folder of bad files.
GENERATE = [
    ("generate", "CLIP"),
    ("generate {clip} Why?", "--checkpoint"),
    ("generate {here}/none.mp4 Why? " + SMALL, "{here}/none.mp4"),
    ("generate {here} Why? " + SMALL, "{here}"),
    ("generate {here}/empty.mp4 Why? " + SMALL, "{here}/empty.mp4"),
    ("generate {here}/text.mp4 Why? " + SMALL, "{here}/text.mp4"),
    ("generate {here}/head.mp4 Why? " + SMALL, "{here}/head.mp4"),
    ("generate {here}/still.png/none Why? " + SMALL, "{here}/still.png/none"),
    ("generate {here}/by\udcfftes.mp4 Why? " + SMALL, "tes.mp4"),
    ("generate http://127.0.0.1:{closed}/a.mp4 Why? " + SMALL, "127.0.0.1:{closed}"),
    ("generate http://127.0.0.1:{server}/a.mp4 Why? " + SMALL, "127.0.0.1:{server}"),
    ("generate nonsense://here Why? " + SMALL, "nonsense://here"),
    ("generate {clip} _ " + SMALL, "QUESTION"),
    ("generate {clip} Wh\udcff " + SMALL, "QUESTION"),
    ("generate {clip} Why? --checkpoint {here}/none", "{here}/none"),
    ("generate {clip} Why? --checkpoint {here}/empty.mp4", "{here}/empty.mp4"),
    ("generate {clip} Why? --checkpoint {here}", "{here}"),
    ("generate {clip} Why? --checkpoint {released}", "omnizip convert"),
    ("generate {clip} Why? --checkpoint {here}/damaged", "{here}/damaged"),
    ("generate {clip} Why? --checkpoint {here}/unfinished", "{here}/unfinished"),
    ("generate {clip} Why? --grid-slots 0 --checkpoint small", "--grid-slots"),
    ("generate {clip} Why? --max-new-tokens 0 " + SMALL, "--max-new-tokens"),
    ("generate {clip} Why? --max-new-tokens 99999999 " + SMALL, "the answer need"),
    ("generate {clip} Why? --max-frames 1 " + SMALL, "max_frames"),
    ("generate {clip} Why? --temperature nan " + SMALL, "--temperature"),
    ("generate {clip} Why? --temperature -1 " + SMALL, "temperature"),
    ("generate {clip} Why? --top-p 0 " + SMALL, "top_p"),
    ("generate {clip} Why? --seed -1 " + SMALL, "--seed"),
    ("generate {clip} Why? --seed 99999999999999999999 " + SMALL, "--seed"),
    ("generate {clip} Why? --dtype int8 " + SMALL, "--dtype"),
    ("generate {clip} Why? --no-audio --no-video " + SMALL, "--no-audio"),
    ("generate {clip} Why? --picture {here} " + SMALL, "--picture"),
    ("generate {clip} Why? --picture {here}/none/a.png " + SMALL, "--picture"),
    ("generate {clip} Why? --picture {here}/a.doc " + SMALL, "--picture"),
]
STREAM = [
    ("stream {here}/none.mp4 " + SMALL, "{here}/none.mp4"),
    ("stream {here}/text.mp4 " + SMALL, "{here}/text.mp4"),
    ("stream http://127.0.0.1:{closed}/a.mp4 " + SMALL, "127.0.0.1:{closed}"),
    ("stream device:v4l2 " + SMALL, "device:v4l2"),
    ("stream device:nonsense:x " + SMALL, "nonsense:x"),
    ("stream {clip} --ask noon Why? " + SMALL, "noon"),
    ("stream {clip} --ask 0:99 Why? " + SMALL, "0:99"),
    ("stream {clip} --ask end _ " + SMALL, "--ask"),
    ("stream {clip} --ask end Wh\udcff " + SMALL, "--ask"),
    ("stream {clip} --ask end", "--ask"),
    ("stream {clip} --capacity 300 " + SMALL, "capacity"),
    ("stream {clip} --capacity 99999999 " + SMALL, "capacity"),
    ("stream {clip} --timeout nan " + SMALL, "timeout"),
    ("stream {clip} --no-audio --sound {clip} " + SMALL, "--sound"),
    ("stream {clip} --sound {here}/none.wav " + SMALL, "{here}/none.wav"),
    ("stream {clip} --memory none " + SMALL, "--memory"),
]
OTHERS = [
    ("", "COMMAND"),
    ("nonsense", "nonsense"),
    ("demo --nonsense", "--nonsense"),
    ("demo --out {here}/text.mp4", "--out"),
    ("demo --out {here}/text.mp4/demo", "--out"),
    ("demo --seed 1.5", "--seed"),
    ("convert {here}/none {here}/target", "{here}/none"),
    ("convert {here} {here}/target", "{here}"),
    ("convert {released} {here}", "{here}"),
    ("convert {released} {here}/text.mp4", "{here}/text.mp4"),
    ("convert {released}", "TARGET"),
]
# With a redirection; the message is None where stderr is closed.
REDIRECTED = [
    ("generate {clip} Why? " + SMALL, ">&-", "standard output"),
    ("stream {clip} " + SMALL, ">&-", "standard output"),
    ("demo --out {here}/demo", ">&-", "standard output"),
    ("generate {clip} Why? --max-new-tokens 4 " + SMALL, ">/dev/full", "writing failed"),
    ("stream {clip} --json " + SMALL, ">/dev/full", "writing failed"),
    ("generate {here}/none.mp4 Why? " + SMALL, "2>&-", None),
    ("demo --seed x", "2>&-", None),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, cache_folder):
    """Bad files, broken checkpoints, a closed port, and a server that answers 404."""
    here = tmp_path_factory.mktemp("here")
    clip = make_clip(0).write(tmp_path_factory.mktemp("clip") / "clip.mp4")
    (here / "empty.mp4").touch()
    (here / "still.png").touch()
    (here / "text.mp4").write_text("no film\n" * 1000)
    (here / "head.mp4").write_bytes(clip.read_bytes()[:500])
    damaged = shutil.copytree(small_checkpoint(), here / "damaged")
    for file in (damaged / WEIGHTS).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    unfinished = shutil.copytree(small_checkpoint(), here / "unfinished")
    (unfinished / MARKER).touch()

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        yield {
            "here": here,
            "clip": clip,
            "released": RELEASED,
            "closed": closed.getsockname()[1],
            "server": server.server_port,
        }
    server.shutdown()
    server.server_close()


def finished(words, redirection, folder):
    """Exit code, stdout and stderr of a command; raises ``TimeoutError``."""
    if not redirection:
        out, err = (Path(tempfile.mkstemp(dir=folder)[1]) for _ in range(2))
        process = start_command(*words, out=out, err=err)
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            raise TimeoutError
        return process.exitcode, out.read_bytes(), err.read_bytes()
    command = [sys.executable, "-m", "omnizip_jax", *words]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *map(os.fsencode, command)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout, done.stderr


def outcome(typed, redirection, named, places, folder):
    """The outcome in one word, and the whole output."""
    words = [word.format(**places).replace("_", " ", word == "_") for word in typed.split()]
    try:
        code, *outputs = finished(words, redirection, folder)
    except (TimeoutError, subprocess.TimeoutExpired):
        return "hang", ""
    out, err = (x.decode(errors="replace") for x in outputs)
    said = f"exit code {code}\n{out}{err}"
    if code < 0 or code >= 128:
        return "crash", said
    if "Traceback" in said or "Exception ignored" in said:
        return "traceback", said
    if code == 0:
        return "accepted", said
    if named is not None and named.format(**places) not in err:
        return "unnamed", said
    return "refused", said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the shell of POSIX")
def test_fifty_bad_arguments(places, tmp_path):
    plain = [(typed, "", named) for typed, named in [*GENERATE, *STREAM, *OTHERS]]
    cases = [*plain, *REDIRECTED]
    assert len(cases) >= 50
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda case: outcome(*case, places, tmp_path), cases))
    tally = collections.Counter(kind for kind, _ in outcomes)
    wrong = [
        f"{kind}: {case[0]!a} {case[1]}\n{said}"
        for case, (kind, said) in zip(cases, outcomes, strict=True)
        if kind != "refused"
    ]
    assert tally == {"refused": len(cases)}, "\n".join(wrong)
    assert not (places["here"] / "target").exists()
