"""Files, URLs, devices and arrays to windows, independent of models."""

from omnizip_jax.media.arrays import PushSource
from omnizip_jax.media.clip import Clip, check_clip, load_clip, window_frames
from omnizip_jax.media.validation import check_windows
from omnizip_jax.media.window_stream import WindowStream, windows
