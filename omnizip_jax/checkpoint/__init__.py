"""A converted checkpoint on disk: writing it from released files, and loading it."""

from omnizip_jax.checkpoint.load import load

__all__ = ["load"]
