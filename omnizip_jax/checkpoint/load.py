"""Loading a converted checkpoint onto the device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from omnizip_jax.checkpoint.atomic_directory import MARKER
from omnizip_jax.checkpoint.checksums import CHECKSUMS, damaged_files
from omnizip_jax.checkpoint.folder import (
    CONFIG,
    FINGERPRINT,
    TOKENIZER,
    WEIGHTS,
    check_tokenizer,
    load_tokenizer,
    read_stop_tokens,
    unsupported,
    weights_dtype,
)
from omnizip_jax.checkpoint.safetensors_index import listing
from omnizip_jax.checkpoint.small_model import small_checkpoint
from omnizip_jax.models.backend import jax_defaults
from omnizip_jax.models.loaded_model import Params, digest, register_fingerprint
from omnizip_jax.models.parameters import ArrayInfo, path_of, stored_paths
from omnizip_jax.models.quantized import VALUE_DTYPES
from omnizip_jax.models.registry import Config, family, read_config
from omnizip_jax.models.sharding import axis_sharding, check_mesh, make_mesh
from omnizip_jax.models.weight_mapping import array_infos, axis_sizes
from omnizip_jax.window_spec import check_flags

ADVICE = "write one with `omnizip convert SOURCE TARGET`"


@jax_defaults()
def load(
    path: str | os.PathLike[str],
    dtype: jax.typing.DTypeLike | None = None,
    *,
    mesh: Mesh | int | None = None,
    cache_dtype: str | None = None,
    verify: bool = False,
) -> Params:
    """Load a converted checkpoint onto the default device, or onto the devices of a mesh.

    Args:
        path: the folder that ``omnizip convert`` wrote; or ``"small"``, the small trained model
            that comes with the package and answers questions about ``omnizip_jax.testbed`` clips.
        dtype: of the weights that are not quantised and of the computation, ``"bfloat16"`` or
            ``"float32"``; None keeps the stored type.
        cache_dtype: ``"int8"`` keeps keys and values in 8 bits, with a scale for each head and
            slot; None in ``dtype``.
        mesh: number of devices; or a mesh with an axis "model", over which heads, feed-forward
            network and vocabulary are divided; None: the mesh of ``jax.set_mesh``, or one device.
            Each device reads its own part.
        verify: first compare every file with the checksum that conversion wrote. It takes the
            time of reading the files once more. The small model is always verified.

    Raises:
        ValueError: the folder is not a finished converted checkpoint, does not fit its
            configuration, or is damaged; another dtype; a mesh that does not fit the model.
    """
    if cache_dtype not in (None, "int8"):
        raise ValueError(f'cache_dtype must be "int8" or None, got {cache_dtype!r}')
    outline, folder = _read_outline(path, dtype, verify, mesh)
    placed = outline.weights
    if outline.mesh is None:
        device = jnp.zeros(()).sharding  # the default one
        placed = jax.tree.map(lambda leaf: leaf.update(sharding=device), placed)
    with _damage_named(folder):
        weights = _read_arrays(folder / WEIGHTS, placed)
    params = outline.replace(weights=weights, quantized_cache=cache_dtype is not None)
    register_fingerprint(params.weights, params.fingerprint)
    return params


def _read_arrays(path: Path, placed: Any) -> Any:
    """Read the arrays of ``placed``, one after another, each device its own part.

    Orbax itself reads several at once and holds copies of each, which takes 1.6 times the memory
    of a 3B's weights.
    """
    (manifest,) = path.glob("*/manifest.ocdbt")
    base = {"driver": "file", "path": f"{manifest.parent}/"}

    def open_array(name: str) -> Any:
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        spec = {"driver": "zarr3", "kvstore": store, "fill_missing_data_reads": False}
        return tensorstore.open(spec, open=True).result()

    def read(keys: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        path = path_of(keys)
        paths = stored_paths(path, leaf.shape[0])
        parts = [open_array(".".join(each)) for each in paths]
        stored = parts[0] if paths == [path] else tensorstore.stack(parts)

        def read_part(index: Any) -> np.ndarray:
            return stored[index].read().result().astype(leaf.dtype, copy=False)

        array = jax.make_array_from_callback(leaf.shape, leaf.sharding, read_part)
        return array.block_until_ready()  # before the next one is read

    return jax.tree_util.tree_map_with_path(read, placed)


@jax_defaults()
def load_outline(path: str | os.PathLike[str], dtype: jax.typing.DTypeLike | None = None) -> Params:
    """``load`` without values and without a device, for a process that plans work.

    Each weight is a ``jax.ShapeDtypeStruct``; damaged weights are not found.
    """
    return _read_outline(path, dtype)[0]


def _read_outline(
    path: str | os.PathLike[str],
    dtype: jax.typing.DTypeLike | None,
    verify: bool = False,
    mesh: Mesh | int | None = None,
) -> tuple[Params, Path]:
    """The outline of a checkpoint, and its absolute folder."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f'path must be a path or "small", got {path!r}')
    check_flags(verify=verify)
    wanted = None if dtype is None else weights_dtype(dtype)
    path = (small_checkpoint() if path == "small" else Path(path)).expanduser()
    _check_folder(path)
    if verify and (problems := damaged_files(path)):
        raise ValueError(listing(f"{path}: damaged files; {ADVICE}", problems))
    config = read_config(path / CONFIG)
    fingerprint = (path / FINGERPRINT).read_bytes()
    if not re.fullmatch(rb"[0-9a-f]{16}", fingerprint):
        raise ValueError(f"{path}: damaged {FINGERPRINT}; {ADVICE}")
    fingerprint = fingerprint.decode()
    folder = path.resolve()  # Orbax refuses relative paths
    with _damage_named(path):
        stored = ocp.metadata(str(folder / WEIGHTS)).metadata
    found = _by_name(stored)
    if config.text.tied and any(name.startswith("text/lm_head/") for name in found):
        config = config.untied()  # conversion found two tables that differ
    bits = _quantized_bits(found)
    dtypes = {
        jnp.dtype(x.dtype) for name, x in found.items() if name.rpartition("/")[0] not in bits
    }
    if wanted is None:  # earlier versions wrote float16 and mixed types, which do not compute
        wanted = jnp.dtype(jnp.bfloat16 if dtypes == {jnp.dtype(jnp.bfloat16)} else jnp.float32)
    mesh, sizes = _mesh(mesh, config), axis_sizes(config)
    tree = jax.tree.map(
        lambda info: dataclasses.replace(info, bits=bits.get("/".join(info.stored[0].path))),
        family(config).parameter_tree(config, wanted),
    )
    _check_arrays(path, array_infos(tree), found)
    tokenizer = load_tokenizer(path / TOKENIZER)
    try:
        check_tokenizer(tokenizer, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {ADVICE}") from error
    if dtypes != {wanted}:
        fingerprint = digest([fingerprint, wanted.name])  # casting changes the values
    stop_tokens = read_stop_tokens(path, config)
    place = mesh and functools.partial(axis_sharding, mesh=mesh, sizes=sizes)
    outline = jax.tree.map(lambda info: info.abstract(place), tree)
    return Params(outline, config, tokenizer, fingerprint, stop_tokens, wanted, mesh), folder


def _mesh(mesh: Any, config: Config) -> Mesh | None:
    """The mesh of an argument of ``load``; raises ``ValueError`` unless the model fits it."""
    if mesh is None:
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            return None
    elif not isinstance(mesh, Mesh):
        mesh = make_mesh(mesh, axis_sizes(config))
    check_mesh(mesh, axis_sizes(config))
    return mesh


def _check_folder(path: Path) -> None:
    if reason := unsupported(path):
        raise ValueError(f"{path}: {reason}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder. Give a converted checkpoint; {ADVICE}")
    if (path / MARKER).exists() or (path.parent / MARKER).exists():
        raise ValueError(
            f"{path}: the remains of an interrupted conversion. Delete them and run "
            "`omnizip convert SOURCE TARGET` again"
        )
    files = (CONFIG, WEIGHTS, FINGERPRINT, CHECKSUMS)
    missing = [name for name in files if not (path / name).exists()]
    if missing and any(path.glob("*.safetensors*")):
        raise ValueError(
            f"{path}: a checkpoint in the released layout, not yet converted. "
            f"Run `omnizip convert {path} TARGET` and load TARGET"
        )
    if missing:
        raise ValueError(
            f"{path}: not a converted checkpoint, without {', '.join(missing)}; {ADVICE}"
        )


def _quantized_bits(found: Mapping[str, Any]) -> dict[str, int]:
    """Bits of the quantised parameters among the stored arrays, by the parameters' names."""
    bits = {dtype: bits for bits, dtype in VALUE_DTYPES.items()}
    names = ((name.rpartition("/"), leaf) for name, leaf in found.items())
    return {
        parameter: bits[leaf.dtype]
        for (parameter, _, part), leaf in names
        if part == "values" and leaf.dtype in bits
    }


def _check_arrays(path: Path, expected: list[ArrayInfo], found: Mapping[str, Any]) -> None:
    """Compare the stored arrays with those of the configuration."""
    stored = (part for info in expected for part in info.stored)
    want = {"/".join(array.path): array for part in stored for array in part.arrays}
    shapes = [{name: tuple(x.shape) for name, x in arrays.items()} for arrays in (want, found)]
    lines = [
        f"  {name}: expected {shapes[0].get(name)}, found {shapes[1].get(name)}"
        for name in sorted(want.keys() | found.keys())
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    lines += [
        f"  {name}: expected floating point, found {leaf.dtype}"
        for name, leaf in found.items()
        if name in want
        and jnp.issubdtype(want[name].dtype, jnp.floating)
        and not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if lines:
        raise ValueError(f"{path}: {WEIGHTS} do not fit {CONFIG}; {ADVICE}\n" + "\n".join(lines))


def _by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Name the damaged folder in errors of Orbax, which raises many kinds, ``Exception`` too."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError, Warning):  # no fault of the files
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"{path}: damaged weights; {ADVICE} ({reason})") from error
