"""The small trained model that comes with the package: ``load("small")``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from omnizip_jax.checkpoint import convert
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.released import released_leaves

RELEASED = Path(__file__).parents[1] / "testbed" / "small"  # in the released layout


def cache_folder() -> Path:
    """Where this package keeps what it can make again: below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "omnizip_jax"


def small_checkpoint() -> Path:
    """The folder of the converted small model; it is converted the first time.

    Raises:
        ValueError: the cache folder cannot be written to.
    """
    # Named by its content and by our layout, so that a change of either is converted anew.
    layout = repr(released_leaves(ModelConfig.from_file(RELEASED / "config.json")))
    files = ("config.json", "model.safetensors")
    content = b"".join((RELEASED / name).read_bytes() for name in files)
    digest = hashlib.sha256(content + layout.encode()).hexdigest()
    target = cache_folder() / f"small-{digest[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "checkpoint"
            convert.convert(RELEASED, made)
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(target)
    except OSError as error:
        raise ValueError(
            f"{target.parent}: cannot keep the small model there ({error}); "
            "set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return target
