"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni and Qwen3-Omni."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnizip_jax.checkpoint.load import load
    from omnizip_jax.compression import METHODS, Method, OmniZipConfig
    from omnizip_jax.inference.api import converse, generate, read, warmup
    from omnizip_jax.inference.context import Context, fork
    from omnizip_jax.inference.generation import Answer, ask, stream_answer
    from omnizip_jax.inference.snapshot import restore, save
    from omnizip_jax.inference.streaming import feed, feed_block, init_stream
    from omnizip_jax.media import PushSource, windows
    from omnizip_jax.window_spec import WindowSpec

_MODULES = {
    "checkpoint.load": ["load"],
    "compression": ["METHODS", "Method", "OmniZipConfig"],
    "inference.api": ["converse", "generate", "read", "warmup"],
    "inference.context": ["Context", "fork"],
    "inference.generation": ["Answer", "ask", "stream_answer"],
    "inference.snapshot": ["restore", "save"],
    "inference.streaming": ["feed", "feed_block", "init_stream"],
    "media": ["PushSource", "windows"],
    "window_spec": ["WindowSpec"],
}
__all__ = sorted(name for names in _MODULES.values() for name in names)  # pyright: ignore


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `omnizip --help` does not import jax."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
