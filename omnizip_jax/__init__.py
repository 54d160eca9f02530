"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnizip_jax.checkpoint.load import load
    from omnizip_jax.compression import METHODS, Method, OmniZipConfig
    from omnizip_jax.inference.api import converse, generate, read, warmup
    from omnizip_jax.inference.context import Context, fork
    from omnizip_jax.inference.generation import Answer, ask, stream_answer
    from omnizip_jax.inference.snapshot import restore, save
    from omnizip_jax.inference.streaming import feed, init_stream
    from omnizip_jax.media import PushSource, windows
    from omnizip_jax.window_spec import WindowSpec

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
    "restore",
    "save",
    "stream_answer",
    "warmup",
    "windows",
]

_MODULES = {
    "METHODS": "compression",
    "Answer": "inference.generation",
    "Context": "inference.context",
    "Method": "compression",
    "OmniZipConfig": "compression",
    "PushSource": "media",
    "WindowSpec": "window_spec",
    "ask": "inference.generation",
    "converse": "inference.api",
    "feed": "inference.streaming",
    "fork": "inference.context",
    "generate": "inference.api",
    "init_stream": "inference.streaming",
    "load": "checkpoint.load",
    "read": "inference.api",
    "restore": "inference.snapshot",
    "save": "inference.snapshot",
    "stream_answer": "inference.generation",
    "warmup": "inference.api",
    "windows": "media",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `omnizip --help` does not import jax."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
