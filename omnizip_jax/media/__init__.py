"""Files, URLs and arrays to windows; knows no model."""

from omnizip_jax.media.clip import Clip, load_clip, window_frames

__all__ = ["Clip", "load_clip", "window_frames"]
