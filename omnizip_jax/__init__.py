"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

from omnizip_jax.checkpoint import load
from omnizip_jax.config import OmniZipConfig, WindowSpec
from omnizip_jax.generate import Answer, generate
from omnizip_jax.stream import StreamState, ask, feed, init_stream

__all__ = [
    "Answer",
    "OmniZipConfig",
    "StreamState",
    "WindowSpec",
    "ask",
    "feed",
    "generate",
    "init_stream",
    "load",
]
