"""Windows that may have been made by hand: what the programs take for granted is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnizip_jax.config import WindowSpec
from omnizip_jax.media.clip import Clip
from omnizip_jax.types import Window


def check_clip(clip: Clip) -> None:
    """Raise ``ValueError`` unless its windows are of the clip's shape, and of finite values."""
    count = len(np.atleast_1d(getattr(clip.windows, "mel_length", ())))
    if count == 0:
        raise ValueError("a clip needs a window: make it with omnizip_jax.media.load_clip")
    check_windows(clip.windows, clip.spec, count)


def check_windows(windows: Window, spec: WindowSpec, count: int | None = None) -> None:
    """Raise ``ValueError`` unless they are of the given shape, and of finite values.

    Args:
        count: so many windows, with a leading axis; None is one without.
    """
    if not isinstance(windows, Window):
        raise ValueError(
            f"window must be a Window, as omnizip_jax.windows makes them, got "
            f"{type(windows).__name__}"
        )
    usual = "feed takes one window at a time, as omnizip_jax.windows makes them"
    if count is not None:
        usual = "the windows of a clip are as omnizip_jax.media.load_clip makes them"
    for name, like in vars(Window.empty(spec, count)).items():
        value: Any = getattr(windows, name)
        found, kind = np.shape(value), np.asarray(value).dtype
        family_of = np.floating if like.dtype == np.float32 else like.dtype.type
        if np.issubdtype(like.dtype, np.signedinteger):
            family_of = np.integer
        if found != like.shape or not np.issubdtype(kind, family_of):
            raise ValueError(
                f"window.{name} should be {family_of.__name__} of "
                f"shape {like.shape}, got {kind} of {found}; {usual}"
            )
    if not np.isfinite(np.asarray(windows.mel)).all():
        raise ValueError(
            "window.mel has NaN or infinite values: check the sound that it was made of"
        )
    sizes = np.asarray(windows.grid_size).reshape(-1, 2)
    lengths, frames = np.asarray(windows.mel_length).reshape(-1), windows.mel.shape[-1]
    for (rows, columns), length in zip(sizes, lengths, strict=True):
        if rows * columns > spec.grid_slots:
            raise ValueError(
                f"window.grid_size {rows} x {columns} exceeds the {spec.grid_slots} slots of a "
                "grid: resize the picture, or begin with a larger WindowSpec.grid_slots"
            )
        if min(rows, columns) < 1 or not 0 <= length <= frames:
            raise ValueError(
                f"window.grid_size must be at least 1 x 1 and mel_length 0 to {frames}, got "
                f"{rows} x {columns} and {length}"
            )
