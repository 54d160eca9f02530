"""Compiled programs, kept from one command to the next."""

from __future__ import annotations


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    import jax

    from omnizip_jax.checkpoint.small import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
