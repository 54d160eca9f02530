"""``load``: a converted checkpoint onto the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from omnizip_jax.checkpoint.folder import CONFIG, TOKENIZER, UNFINISHED, WEIGHTS, load_tokenizer
from omnizip_jax.checkpoint.small import small_checkpoint
from omnizip_jax.models.params import Params
from omnizip_jax.models.qwen2_5_omni.config import ModelConfig
from omnizip_jax.models.qwen2_5_omni.parameters import abstract_params

ADVICE = "write one with `omnizip convert SOURCE TARGET`"


def load(path: str | Path, dtype: jax.typing.DTypeLike | None = None) -> Params:
    """Load a converted checkpoint onto the default device.

    Args:
        path: the folder that ``omnizip convert`` wrote; or ``"small"``, the small trained model
            that comes with the package and answers questions about ``omnizip_jax.testbed`` clips.
        dtype: of the weights, ``"bfloat16"`` or ``"float32"``; as converted by default.

    Raises:
        ValueError: the folder is not a finished converted checkpoint, or does not fit its
            configuration.
    """
    if path == "small":
        path = small_checkpoint()
    path = Path(path)
    _check_folder(path)
    config = ModelConfig.from_file(path / CONFIG)
    expected = abstract_params(config)
    with _explained(path):
        stored = ocp.pytree_metadata(_absolute(path / WEIGHTS)).metadata
    _check_shapes(path, expected, stored)
    sharding = jnp.zeros(()).sharding  # of the default device
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding),
        stored,
    )
    with _explained(path):
        weights = ocp.load(_absolute(path / WEIGHTS), wanted)
    return Params(weights=weights, config=config, tokenizer=load_tokenizer(path / TOKENIZER))


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder. Give a converted checkpoint; {ADVICE}")
    if (path / UNFINISHED).exists():
        raise ValueError(
            f"{path}: the remains of an interrupted conversion. Delete them and run "
            "`omnizip convert SOURCE TARGET` again"
        )
    if (path / WEIGHTS).is_dir() and (path / CONFIG).is_file():
        return
    if any(path.glob("*.safetensors*")):
        raise ValueError(
            f"{path}: a checkpoint in the released layout, not yet converted. "
            f"Run `omnizip convert {path} TARGET` and load TARGET"
        )
    raise ValueError(f"{path}: not a converted checkpoint; {ADVICE}")


def _check_shapes(path: Path, expected: Any, stored: Any) -> None:
    """The arrays on disk are those that the configuration beside them asks for."""

    def flat(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(key): tuple(leaf.shape) for key, leaf in leaves}

    want, found = flat(expected), flat(stored)
    wrong = sorted(name for name in want.keys() | found.keys() if want.get(name) != found.get(name))
    if wrong:
        lines = [f"  {name}: expected {want.get(name)}, found {found.get(name)}" for name in wrong]
        raise ValueError(f"{path}: {WEIGHTS} do not fit {CONFIG}; {ADVICE}\n" + "\n".join(lines))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which folder is damaged; Orbax raises many kinds of errors, ``Exception`` among them."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # out of memory, no fault of the files
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"{path}: damaged weights; {ADVICE} ({reason})") from error


def _absolute(path: Path) -> str:
    return str(path.expanduser().resolve())  # Orbax refuses relative paths
