"""Files, URLs, devices and arrays to windows; knows no model."""

from omnizip_jax.media.clip import Clip, load_clip, window_frames
from omnizip_jax.media.live import WindowStream, windows
from omnizip_jax.media.push import PushSource
from omnizip_jax.media.validation import check_clip, check_windows

__all__ = [
    "Clip",
    "PushSource",
    "WindowStream",
    "check_clip",
    "check_windows",
    "load_clip",
    "window_frames",
    "windows",
]
