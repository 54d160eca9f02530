"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

from omnizip_jax.checkpoint.load import load
from omnizip_jax.compression import OmniZipConfig
from omnizip_jax.config import WindowSpec
from omnizip_jax.generate import Answer, generate
from omnizip_jax.media import PushSource, windows
from omnizip_jax.stream import ask, feed, init_stream
from omnizip_jax.stream_state import StreamState
from omnizip_jax.warmup import warmup

__all__ = [
    "Answer",
    "OmniZipConfig",
    "PushSource",
    "StreamState",
    "WindowSpec",
    "ask",
    "feed",
    "generate",
    "init_stream",
    "load",
    "warmup",
    "windows",
]
