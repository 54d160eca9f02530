"""Suite ``methods``: time of each method's selection for a clip.

``select`` only, jitted, with default settings, on random outputs of the encoders and all features
that methods request. The peers are PyTorch versions of published mechanisms; those of OmniZip's
rules are in the suite ``compression``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compression import random_tokens, thread_choices, to_torch
from benchmarks.harness import Call, Row, program_bytes
from benchmarks.machine import synchronised
from benchmarks.run_state import Bench
from omnizip_jax.compression import EVS, METHODS, DyCoke, Method, Seats, VidCom2, VisionZip
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.types import AudioFeatures, EncodedWindow, Selection, VisionFeatures

LONG = 128  # windows: 4.3 minutes
DYCOKE_RATE = 2 / 3  # k; keeps half of the tokens


def run(bench: Bench) -> Iterator[Row]:
    count, width = bench.compression_windows, bench.preset.compression_width
    windows = random_encoded(count, width, bench.config, bench.dtype)
    tokens = windows.audio.token_mask.size + windows.video_mask.size
    size = sum(x.nbytes for x in jax.tree.leaves((windows.audio.tokens, windows.video)))
    clip = f"{count} windows, D={width}, {size / 2**20:.0f} MiB"
    bench.say(f"methods: {', '.join(METHODS)} on {clip}")
    of_torch = peer_calls(windows) if bench.has_torch else {}
    for name, kind in METHODS.items():
        select = program(kind(), windows)
        selection = select(windows)
        kept = int(jnp.sum(selection.audio_keep)) + int(jnp.sum(selection.video_keep))
        note = f"keeps {kept / tokens:.1%} of {tokens} tokens; {clip}"
        peers = thread_choices(of_torch[name]) if name in of_torch else {}
        ours = functools.partial(_finished, select, windows)
        timing, *others = bench.alternate(ours, *peers.values())
        best = min(zip(others, peers, strict=True), key=lambda pair: pair[0].median, default=())
        yield bench.timed(f"methods.{name}", timing, *best, note=note)
    yield from _peaks(bench)


def _peaks(bench: Bench) -> Iterator[Row]:
    """Temporaries of a long clip, which do not grow with the square of its tokens."""
    width = bench.preset.compression_width
    shapes = jax.eval_shape(lambda: random_encoded(LONG, width, bench.config, bench.dtype))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    for name in ("visionzip", "seats", "vidcom2"):
        used, _ = program_bytes(program(METHODS[name](), shapes).lower(shapes).compile())
        note = f"{LONG} windows: {used / 2**20:.0f} MiB beside a clip of {size / 2**20:.0f} MiB"
        yield bench.figure(f"methods.{name}_temporaries", used / size, "share", note=note)


def peer_calls(windows: EncodedWindow) -> dict[str, Call]:
    """The published mechanisms in PyTorch on the same clip, with the same settings."""
    from torch import Tensor
    from torch.nn.functional import pad

    from benchmarks.peers import other_methods_torch as rivals

    assert windows.vision is not None
    video, audio = to_torch(windows.video), to_torch(windows.audio.tokens)
    grids, flat = video.flatten(0, 1), video.flatten(0, 2)
    received, keys = to_torch(windows.vision.received), to_torch(windows.vision.keys)
    audio_heads = to_torch(windows.audio.queries), to_torch(windows.audio.keys)
    seats, zipped, frame = Seats(), VisionZip(), DyCoke().audio_frame
    frames = pad(audio, (0, 0, 0, -audio.shape[1] % frame)).unflatten(1, (-1, frame))

    def both() -> tuple[Tensor, Tensor]:
        of_audio = rivals.seats(audio, rivals.received_in_windows(*audio_heads), seats.target_audio)
        of_windows = video.flatten(1, 2), received.flatten(1)
        return of_audio, rivals.seats(*of_windows, seats.target_video)

    def merge() -> tuple[Tensor, Tensor]:
        return rivals.dycoke(frames, DYCOKE_RATE), rivals.dycoke(grids[None], DYCOKE_RATE)

    calls = {
        "dycoke": merge,
        "visionzip": lambda: rivals.visionzip(
            flat, keys.flatten(0, 2), received.flatten(), 1 - zipped.rho_video, zipped.contextual
        ),
        "evs": lambda: rivals.evs(grids, 1 - EVS().rho_video),
        "vidcom2": lambda: rivals.vidcom2(grids, 1 - VidCom2().rho_video),
        "seats": both,
    }
    return {name: functools.partial(synchronised, call) for name, call in calls.items()}


def _finished(select: Callable[[EncodedWindow], Selection], windows: EncodedWindow) -> None:
    jax.block_until_ready(select(windows))


def program(method: Method, windows: EncodedWindow) -> Callable[[EncodedWindow], Selection]:
    """A method's selection for a clip of full windows, jitted."""
    (count, audio), video = windows.audio.token_mask.shape, windows.video_mask.shape
    budget = method.plan(np.full(count, audio), np.full(count, np.prod(video[1:])))
    return jax.jit(lambda windows: method.select(windows, budget, jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def random_encoded(count: int, width: int, config: ModelConfig, dtype: Any) -> EncodedWindow:
    """``random_tokens`` with all other outputs of the encoders."""
    tokens = random_tokens(count, width, dtype)
    keys = jax.random.split(jax.random.key(1), 4)
    normal = functools.partial(jax.random.normal, dtype=dtype)
    frames = (count, config.audio.n_window, config.audio.heads, config.audio.head_dim)
    grids = tokens.video.shape[:-1]
    return EncodedWindow(
        audio=AudioFeatures(
            tokens=tokens.audio,
            token_mask=tokens.audio_mask,
            queries=normal(keys[0], frames),
            keys=normal(keys[1], frames),
            frame_mask=jnp.ones(frames[:2], bool),
        ),
        video=tokens.video,
        video_mask=tokens.video_mask,
        vision=VisionFeatures(
            received=jax.random.uniform(keys[2], grids, minval=0.5, maxval=2.0),
            keys=normal(keys[3], (*grids, config.vision.head_dim)),
        ),
    )
