"""OmniZip in JAX: audio-guided token compression for Qwen2.5-Omni."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnizip_jax.answer import Answer
    from omnizip_jax.checkpoint.load import load
    from omnizip_jax.compression import METHODS, Method, OmniZipConfig
    from omnizip_jax.config import WindowSpec
    from omnizip_jax.context import Context, fork
    from omnizip_jax.generate import converse, generate, read
    from omnizip_jax.media import PushSource, windows
    from omnizip_jax.reply import ask, stream_answer
    from omnizip_jax.saved import restore, save
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
    "restore",
    "save",
    "stream_answer",
    "warmup",
    "windows",
]

_HOMES = {
    "METHODS": "compression",
    "Answer": "answer",
    "Context": "context",
    "Method": "compression",
    "OmniZipConfig": "compression",
    "PushSource": "media",
    "WindowSpec": "config",
    "ask": "reply",
    "converse": "generate",
    "feed": "stream",
    "fork": "context",
    "generate": "generate",
    "init_stream": "stream",
    "load": "checkpoint.load",
    "read": "generate",
    "restore": "saved",
    "save": "saved",
    "stream_answer": "reply",
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
