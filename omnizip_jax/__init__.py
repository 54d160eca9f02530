"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnizip_jax.checkpoint.load import load
    from omnizip_jax.config import OmniZipConfig, WindowSpec
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

_HOMES = {
    "Answer": "generate",
    "OmniZipConfig": "config",
    "PushSource": "media",
    "StreamState": "stream_state",
    "WindowSpec": "config",
    "ask": "stream",
    "feed": "stream",
    "generate": "generate",
    "init_stream": "stream",
    "load": "checkpoint.load",
    "warmup": "warmup",
    "windows": "media",
}


class _Lazy(ModuleType):
    """Imports a public name when it is used, so that `omnizip --help` does not wait for jax.

    The functions ``generate`` and ``warmup`` hide the modules that are called like them.
    """

    def __getattribute__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return super().__getattribute__(name)


sys.modules[__name__].__class__ = _Lazy
