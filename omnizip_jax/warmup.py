"""Compile ahead what ``generate`` will need, so that the first real clip does not wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnizip_jax import prompt as prompts
from omnizip_jax.compression import Method, OmniZipConfig, as_method
from omnizip_jax.config import WindowSpec
from omnizip_jax.decode import Decoding
from omnizip_jax.media import Clip
from omnizip_jax.media.pixels import fit_grid
from omnizip_jax.models.params import Params
from omnizip_jax.reader import read_turn
from omnizip_jax.reply import begin, step
from omnizip_jax.turn import Turn
from omnizip_jax.types import Window


def warmup(
    params: Params,
    seconds: float | Sequence[float],
    *,
    compression: Method | None = OmniZipConfig(),  # noqa: B008 (frozen)
    max_new_tokens: int = 256,
    size: tuple[int, int] = (1280, 720),
    audio: bool = True,
    system: str = prompts.DEFAULT_SYSTEM,
    spec: WindowSpec | None = None,
) -> dict[str, float]:
    """Compile the programs for clips of some lengths, by running them on noise.

    Clips share programs through length buckets, so a few lengths serve many. With JAX's
    persistent compilation cache (the command line turns it on) a second process starts faster.

    Args:
        params: from ``omnizip_jax.load``.
        seconds: one or several lengths of clips.
        compression, max_new_tokens, system, spec: as ``generate`` will get them.
        size: width and height of the pictures.
        audio: whether the clips have sound.

    Returns:
        Wall seconds of each first run, by program and length; where a program was there already
        (of an equal bucket, or from the persistent cache) they are few.
    """
    report = {}
    lengths = [seconds] if isinstance(seconds, (int, float)) else seconds
    spec, method = params.config.spec if spec is None else spec, as_method(compression)
    for length in lengths:
        clip = _noise(length, size, audio, spec)
        turn = Turn.of(params, [clip, "What happens?"], system)
        context, took = read_turn(params, turn, method, turn.room(max_new_tokens))
        report[f"encoders, {length:g} s"] = took["encoders"]
        report[f"compression and prefill, {length:g} s"] = took["prefill"]
        began = time.perf_counter()
        decoding = Decoding(max_new_tokens)
        step(params, begin(params, context, turn.question, decoding, copy=False))
        report[f"generation, {length:g} s"] = time.perf_counter() - began
    return report


def _noise(seconds: float, size: tuple[int, int], audio: bool, spec: WindowSpec) -> Clip:
    """A clip of random pixels and mel, all its windows full."""
    rng = np.random.default_rng(0)
    empty = Window.empty(spec, max(1, -(-int(np.ceil(seconds)) // spec.seconds)))
    cells = np.array(fit_grid(size[1], size[0], spec.grid_slots), np.int32)
    leaves: dict[str, Any] = {  # numpy on the host, where the annotations say Array
        "patches": rng.integers(0, 256, empty.patches.shape, dtype=np.uint8),
        "grid_size": empty.grid_size * cells,
        "grid_mask": ~empty.grid_mask,
        "mel": rng.standard_normal(empty.mel.shape, dtype=np.float32),
        "mel_length": empty.mel_length + spec.mel_frames * audio,
    }
    windows = empty.replace(**leaves)
    return Clip(windows, float(seconds), spec.seconds / spec.grids, True, audio, spec)
