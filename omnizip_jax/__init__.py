"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

from omnizip_jax.answer import Answer
from omnizip_jax.checkpoint.load import load
from omnizip_jax.compression import METHODS, Method, OmniZipConfig
from omnizip_jax.config import WindowSpec
from omnizip_jax.context import Context, fork
from omnizip_jax.generate import converse, generate, read
from omnizip_jax.media import PushSource, windows
from omnizip_jax.reply import ask, stream_answer
from omnizip_jax.stream import feed, init_stream
from omnizip_jax.warmup import warmup

__all__ = [
    "METHODS",
    "Answer",
    "Context",
    "Method",
    "OmniZipConfig",
    "PushSource",
    "WindowSpec",
    "ask",
    "converse",
    "feed",
    "fork",
    "generate",
    "init_stream",
    "load",
    "read",
    "stream_answer",
    "warmup",
    "windows",
]
