"""The small trained model of the package, ``load("small")``, and the cache folder it is kept in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from omnizip_jax.checkpoint.atomic_directory import atomic_directory, remove
from omnizip_jax.checkpoint.checksums import damaged_files
from omnizip_jax.checkpoint.convert import Conversion
from omnizip_jax.checkpoint.safetensors_index import ConversionError
from omnizip_jax.models.registry import family, read_config

RELEASED = Path(__file__).parents[1] / "testbed" / "small"  # in the released layout


def cache_folder() -> Path:
    """Folder for reproducible files of this package: below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "omnizip_jax"


def small_checkpoint() -> Path:
    """Folder of the converted small model; converts it the first time, and when damaged.

    Raises:
        ValueError: the cache folder cannot be written to.
    """
    # Named by its content and our layout, so that a change of either is converted again.
    config = read_config(RELEASED / "config.json")
    layout = repr(family(config).parameter_tree(config))
    files = sorted(path for path in RELEASED.iterdir() if path.is_file())
    content = [path.name.encode() + path.read_bytes() for path in files]
    digest = hashlib.sha256(b"".join([layout.encode(), *content])).hexdigest()
    target = cache_folder() / f"small-{digest[:12]}"
    if not damaged_files(target):
        return target
    try:
        with atomic_directory(target, wait=True) as folder:
            if damaged_files(target):  # else another process was faster
                Conversion.of(RELEASED).write(folder)
                remove(target)
                folder.rename(target)
    except (OSError, ConversionError) as error:
        raise ValueError(
            f"{target.parent}: cannot keep the small model there ({error}); "
            "set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return target
