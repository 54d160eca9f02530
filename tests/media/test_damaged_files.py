"""Damaged files, read by separate processes: each gives a clip or a ValueError."""

from __future__ import annotations

import collections
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.media.make import grey, tone, write

PER_FILE = 30
LIMIT = 60  # s for one file

# Reads the files that it is given; a line for each: its outcome in JSON.
READ = """
import json, sys, warnings
import numpy as np
from omnizip_jax.media import load_clip
for path in sys.argv[1:]:
    print(json.dumps(["begin", path]), flush=True)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            windows = load_clip(path, max_windows=200).windows
            fine = np.isfinite(windows.mel).all() and 0 <= windows.mel_length.min()
            outcome = "read" if fine else "wrong"
        except ValueError as error:
            outcome = "refused" if path in str(error) else "unnamed: " + str(error)
        except Exception as error:
            outcome = "traceback: " + repr(error)
    print(json.dumps([outcome, path]), flush=True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ten small files, of several containers, codecs and layouts."""
    folder = tmp_path_factory.mktemp("whole")
    frames = grey(np.arange(0, 250, 5))
    shapes = {
        "stereo.mp4": {"frames": frames, "sound": tone(2, channels=2), "audio_codec": "aac"},
        "six.mp4": {"frames": frames, "sound": tone(2, channels=6), "audio_codec": "aac"},
        "six.mkv": {"frames": frames, "sound": tone(2, channels=6), "audio_codec": "aac"},
        "plain.mkv": {"frames": frames, "sound": tone(2)},
        "plain.avi": {"frames": frames, "sound": tone(2, channels=2)},
        "picture.mp4": {"frames": frames},
        "mono.wav": {"sound": tone(2)},
        "eight.wav": {"sound": tone(2, channels=8)},
        "sound.ogg": {"sound": tone(2, channels=2), "audio_codec": "libopus"},
        "sound.mp3": {"sound": tone(2, channels=2), "audio_codec": "libmp3lame"},
    }
    layouts = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
    for name, shape in shapes.items():
        channels = len(shape["sound"]) if "sound" in shape else 1
        write(folder / name, layout=layouts[channels], **shape)
    return sorted(folder.iterdir())


def damaged(data, random):
    """Bits flipped, cut short, a piece lost, doubled, or zeroed."""
    data, kind = bytearray(data), random.integers(5)
    start = int(random.integers(len(data)))
    end = min(len(data), start + int(random.integers(1, max(2, len(data) // 4))))
    if kind == 0:
        for place in random.integers(len(data), size=int(random.choice([1, 20, 200]))):
            data[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    else:
        data[start:end] = bytes(end - start)
    return bytes(data)


def outcomes(paths):
    """What became of each file; a process that crashes or hangs is followed by another one."""
    left, found = list(paths), {}
    while left:
        command = [sys.executable, "-c", READ, *map(str, left[:10])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT * 10)
            lines, code = done.stdout.splitlines(), done.returncode
        except subprocess.TimeoutExpired as error:
            lines, code = (error.stdout or b"").decode().splitlines(), "hang"
        begun = None
        for outcome, path in map(json.loads, lines):
            begun = path if outcome == "begin" else None
            if begun is None:
                found[path] = outcome
        if begun is not None:
            found[begun] = f"ended by {code}"
        assert code == 0 or begun is not None, "the reading process did not begin"
        left = [path for path in left if str(path) not in found]
    return found


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(files, tmp_path):
    random, paths = np.random.default_rng(0), []
    for file in files:
        for number in range(PER_FILE):
            paths.append(tmp_path / f"{number}-{file.name}")
            paths[-1].write_bytes(damaged(file.read_bytes(), random))
    found = outcomes(paths)
    counts = collections.Counter(outcome.partition(":")[0] for outcome in found.values())
    print(f"\n{len(found)} damaged files: {dict(counts)}")
    assert len(found) == PER_FILE * 10 and counts["read"] > 30 and counts["refused"] > 30
    assert set(counts) == {"read", "refused"}, {p: o for p, o in found.items() if ":" in o}
