"""Suite ``media``: from a file with video and audio to windows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import av

from benchmarks.bouncing_clip import write_clip
from benchmarks.harness import Row, Timing, peak_memory
from benchmarks.run_state import Bench
from omnizip_jax.media import load_clip

SECONDS, SIZE = 128, (1280, 720)
TINY_SECONDS, TINY_SIZE = 4, (320, 180)


def run(bench: Bench) -> Iterator[Row]:
    seconds, size = (TINY_SECONDS, TINY_SIZE) if bench.name == "tiny" else (SECONDS, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        bench.say(f"media: writing {seconds} s of {size[0]}x{size[1]} at 25 fps, H.264 and AAC")
        path = write_clip(Path(folder) / "clip.mp4", seconds, size)
        with peak_memory() as peak:
            clip = load_clip(path)
            note = f"{len(clip.windows.mel_length)} windows; {peak()}"
        whole, audio, decoding = bench.alternate(
            lambda: load_clip(path),
            lambda: load_clip(path, use_video=False),
            lambda: decode_all(path),
        )
    yield bench.figure(
        "media.realtime",
        seconds / whole.median,
        "x",
        spread=_realtime(seconds, whole),
        peer=seconds / decoding.median,
        peer_name="decoding every frame, nothing else",
        note=note,
    )
    yield bench.timed("media.load_clip", whole)
    yield bench.timed("media.audio_only", audio)


def _realtime(seconds: float, timing: Timing) -> tuple[float, float]:
    fastest, slowest = timing.spread
    return seconds / slowest, seconds / fastest


def decode_all(path: Path) -> None:
    """Decode both streams with PyAV only."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for packet in container.demux(video=0, audio=0):
            packet.decode()
