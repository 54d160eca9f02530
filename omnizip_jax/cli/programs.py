"""What a process is told before it begins: to keep compiled programs, and its memory together."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8  # of glibc's mallopt


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    import jax

    from omnizip_jax.checkpoint.small_model import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def share_arenas(count: int = 2) -> None:
    """Let threads reuse what others have freed; call it before there are threads.

    glibc gives each thread an arena of its own, up to eight a core: a server with many short
    allocations in many threads grows for hours, as if it leaked. Elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count)
