"""Suite ``methods``: what each method takes to choose among the tokens of a clip, beside no other.

``select`` alone, jitted, with the settings that a method has by default, on random outputs of the
encoders, those included that only some methods ask for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bench import Bench
from benchmarks.compression import random_tokens
from benchmarks.harness import Row
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.types import AudioFeatures, EncodedWindow, Selection, VisionFeatures


def run(bench: Bench) -> Iterator[Row]:
    count, width = bench.compression_windows, bench.preset.compression_width
    windows = random_encoded(count, width, bench.config, bench.dtype)
    tokens = windows.audio.token_mask.size + windows.video_mask.size
    size = sum(x.nbytes for x in jax.tree.leaves((windows.audio.tokens, windows.video)))
    clip = f"{count} windows, D={width}, {size / 2**20:.0f} MiB"
    bench.say(f"methods: {', '.join(METHODS)} on {clip}")
    programs = [program(method()) for method in METHODS.values()]
    calls = [functools.partial(_finished, choose, windows) for choose in programs]
    for name, choose, timing in zip(METHODS, programs, bench.alternate(*calls), strict=True):
        chosen = choose(windows)
        kept = int(jnp.sum(chosen.audio_keep)) + int(jnp.sum(chosen.video_keep))
        note = f"keeps {kept / tokens:.1%} of {tokens} tokens; {clip}"
        yield bench.timed(f"methods.{name}", timing, note=note)


def _finished(choose: Callable[[EncodedWindow], Selection], windows: EncodedWindow) -> None:
    jax.block_until_ready(choose(windows))


def program(method: Method) -> Callable[[EncodedWindow], Selection]:
    """A method's choice among the tokens of a whole clip, jitted."""
    return jax.jit(lambda windows: method.select(windows, jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def random_encoded(count: int, width: int, config: ModelConfig, dtype: Any) -> EncodedWindow:
    """``random_tokens`` with all else that the encoders can give."""
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
