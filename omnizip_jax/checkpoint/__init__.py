"""Converted checkpoints on disk: written from released files, verified, and loaded."""

from omnizip_jax.checkpoint.load import load
