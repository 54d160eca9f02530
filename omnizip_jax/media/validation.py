"""Checks of user input: arrays, media options, and windows that were not made by this package."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from omnizip_jax.types import Window
from omnizip_jax.window_spec import WindowSpec

MAX_GAP = 3600.0  # s; a longer jump between timestamps, or a longer frame, is an error
NUMBER = (int, float, np.integer, np.floating, Fraction)

_LOUDEST = 1e3  # 60 dB above full scale; beyond, the spectrogram's power leaves float32


def check_timeout(timeout: float | None) -> None:
    """Raise ValueError unless it is a positive number of seconds, or None."""
    if timeout is not None and not (
        isinstance(timeout, NUMBER) and math.isfinite(timeout) and timeout > 0
    ):
        raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r}")


def check_selection(use_video: bool, use_audio: bool) -> None:
    """Raise ValueError if neither video nor audio is used."""
    if not (use_audio or use_video):
        raise ValueError("use_audio and use_video are both False: use at least one of them")


def check_max_frames(max_frames: Any, spec: WindowSpec) -> None:
    """Raise ValueError unless it is None or an integer that allows for one grid."""
    if max_frames is not None and not (
        isinstance(max_frames, int | np.integer) and max_frames >= spec.temporal_patch
    ):
        raise ValueError(
            f"max_frames must be an integer that allows for one grid of {spec.temporal_patch} "
            f"frames, got {max_frames!r}"
        )


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Begin the message of each ``ValueError`` with the name of the source."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def as_array(name: str, values: Any) -> Any:
    """The values as an array, or None; raises ValueError where they have no common shape."""
    try:
        return None if values is None else np.asarray(values)
    except ValueError as error:  # numpy's, about an inhomogeneous shape
        raise ValueError(f"{name} must all have one shape: resize or pad them") from error


def check_frames(frames: np.ndarray, shape: str = "[T, H, W, 3]", at_least: int = 1) -> None:
    """Raise ValueError unless they are uint8 RGB or RGBA; ``shape`` is for the message."""
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] not in (3, 4)
        or len(frames) < at_least
        or 0 in frames.shape[1:]
    ):
        raise ValueError(
            f"frames must be uint8 RGB {shape} or RGBA, got {frames.dtype} {frames.shape}"
        )


def check_fps(fps: Any) -> None:
    """Raise ValueError unless it is a frame rate."""
    if not (isinstance(fps, NUMBER) and math.isfinite(fps) and fps * MAX_GAP >= 1):
        raise ValueError(f"fps must be a positive number, at least 1/3600, got {fps!r}")


def check_rate(rate: Any) -> None:
    """Raise ValueError unless it is a sample rate."""
    if not (isinstance(rate, NUMBER) and 1 <= rate < 2**31 and rate == int(rate)):
        raise ValueError(f"sample_rate must be a positive integer, got {rate!r}")


def check_waveform(samples: np.ndarray, name: str) -> None:
    """Raise ValueError unless it is a mono waveform of floats; ``name`` is for the message."""
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim != 1:
        raise ValueError(
            f"{name} must be float [S], mono and within -1..1, got {samples.dtype} "
            f"{samples.shape}; average channels, and divide integers by their range"
        )


def check_samples(samples: np.ndarray) -> None:
    """Raise ValueError if audio samples are NaN, infinite, or far too loud."""
    if not (np.abs(samples) <= _LOUDEST).all():
        raise ValueError(
            "the audio holds NaN, infinite or absurdly large samples: expected floats within "
            "-1..1; divide integers by their range"
        )


def check_windows(windows: Window, spec: WindowSpec, count: int | None = None) -> None:
    """Raise ``ValueError`` unless windows have the given shape and finite values.

    Args:
        windows: one window, or several with a leading axis.
        spec: expected shape.
        count: number of windows; None for one window without a leading axis.
    """
    if not isinstance(windows, Window):
        raise ValueError(
            f"window must be a Window, as omnizip_jax.windows makes them, got "
            f"{type(windows).__name__}"
        )
    call = "feed takes one window at a time, of omnizip_jax.windows(source, spec)"
    if count is not None:
        call = "the windows of a clip are those of omnizip_jax.media.load_clip(source, spec)"
    advice = f"{call} with the spec of the checkpoint, params.config.spec"
    for name, expected in vars(Window.empty(spec, count)).items():
        value: Any = getattr(windows, name)
        shape, dtype = np.shape(value), np.asarray(value).dtype
        kind = np.floating if expected.dtype == np.float32 else expected.dtype.type
        if np.issubdtype(expected.dtype, np.signedinteger):
            kind = np.integer
        if shape != expected.shape or not np.issubdtype(dtype, kind):
            raise ValueError(
                f"window.{name} should be {kind.__name__} of "
                f"shape {expected.shape}, got {dtype} of {shape}; {advice}"
            )
    times, exists = np.asarray(windows.grid_time), np.asarray(windows.grid_mask)
    for window_times, mask in zip(np.atleast_2d(times), np.atleast_2d(exists), strict=True):
        own = window_times[mask].astype(np.int64)
        if ((own < 0) | (own >= spec.positions)).any() or (np.diff(own) <= 0).any():
            raise ValueError(
                f"window.grid_time must ascend from 0 to {spec.positions - 1}, the positions of a "
                f"window, got {own.tolist()}"
            )
    if not np.isfinite(np.asarray(windows.mel)).all():
        raise ValueError("window.mel has NaN or infinite values: check the audio it was made from")
    sizes = np.asarray(windows.grid_size).reshape(-1, 2)
    lengths, frames = np.asarray(windows.mel_length).reshape(-1), windows.mel.shape[-1]
    for (rows, columns), length in zip(sizes, lengths, strict=True):
        if rows * columns > spec.grid_slots:
            raise ValueError(
                f"window.grid_size {rows} x {columns} exceeds the {spec.grid_slots} slots of a "
                "grid: resize the frames, or use a larger WindowSpec.grid_slots"
            )
        if min(rows, columns) < 1 or not 0 <= length <= frames:
            raise ValueError(
                f"window.grid_size must be at least 1 x 1 and mel_length 0 to {frames}, got "
                f"{rows} x {columns} and {length}"
            )
