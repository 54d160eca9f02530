"""Contexts on disk: what was read, to be asked about and fed another day.

A saved context is a folder::

    context.json   what is static: method, shape of the windows, system prompt, the weights' mark,
                   and the names, types and shapes of the arrays
    arrays/        Orbax: cache, past and trace
    checksums      CRC-32 of every file above; written last
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from omnizip_jax.checkpoint.atomic_directory import atomic_directory
from omnizip_jax.checkpoint.checksums import CHECKSUMS, damaged_files, digest, write_checksums
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.config import WindowSpec
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.inference.context import (
    Context,
    PrefillConfig,
    RetentionPolicy,
    StreamState,
    check_usable,
)
from omnizip_jax.inference.kv_cache import refresh_usage
from omnizip_jax.inference.streaming import initial_plan
from omnizip_jax.models.decoder import Cache, KVCache
from omnizip_jax.models.params import Params, WeightsIdentity, check_params
from omnizip_jax.models.registry import Config
from omnizip_jax.types import Selection

PARTS = ("cache", "state", "trace")
LAYOUT = 3  # changes with what the folder, or a context, is made of
ABOUT, ARRAYS = "context.json", "arrays"

Shapes = dict[str, jax.ShapeDtypeStruct]


def save(context: Context, path: str | os.PathLike[str]) -> None:
    """Write a context, of clips or of a stream, to a folder; it stays as it is.

    The folder appears under its name when all is written.

    Args:
        path: folder to create.

    Raises:
        ValueError: the folder exists or cannot be made; a context that is used up, or lost tokens;
            a method that ``METHODS`` does not have.
    """
    check_usable(context)
    context = refresh_usage(context)
    prefill_config, retention = context.prefill_config, context.retention
    target = _folder(path)
    if target.exists():
        raise ValueError(f"{target}: exists already; choose another folder or remove it")
    arrays = _arrays(context)
    about = {
        "layout": LAYOUT,
        "jax": jax.__version__,
        "weights": {
            "config": _config_digest(prefill_config.config),
            "fingerprint": retention.mark.fingerprint,
            "values": retention.mark.values,
        },
        "method": _described(prefill_config.method),
        "spec": dataclasses.asdict(prefill_config.spec),
        "modalities": dataclasses.asdict(prefill_config.modalities),
        "memory": retention.memory,
        "low_water": retention.low_water,
        "text_slots": retention.text_slots,
        "system": retention.system,
        "used_slots": context.used_slots,
        "used_positions": context.used_positions,
        "arrays": {name: [x.dtype.name, list(x.shape)] for name, x in arrays.items()},
    }
    text = json.dumps(about, indent=1)
    with atomic_directory(target, work="save") as folder:
        settings = ocp.Context()
        settings.memory.deepcopy_host_arrays = False  # the arrays are ours and do not change
        with settings:
            ocp.save(str(folder / ARRAYS), arrays)
        (folder / ABOUT).write_text(text, encoding="utf-8")
        write_checksums(folder)
        folder.rename(target)


def restore(params: Params, path: str | os.PathLike[str]) -> Context:
    """A context that ``save`` wrote: ask and feed go on as if nothing had happened.

    Args:
        params: the weights that it was read with.

    Raises:
        ValueError: other weights; a folder that is no saved context, is damaged, or was written by
            another version of this library. Nothing has been allocated then.
    """
    check_params(params)
    folder = _folder(path)
    about = _read(folder)
    mark = WeightsIdentity(params)
    weights = about["weights"]
    if weights["config"] != _config_digest(params.config) or not mark.is_like(
        weights["fingerprint"], weights["values"]
    ):
        raise ValueError(
            f"{folder}: was read with another model: load the weights that it was read with"
        )
    method = _method(about["method"], folder)
    spec, modalities = WindowSpec(**about["spec"]), Modalities(**about["modalities"])
    prefill_config = PrefillConfig.of(
        params, method, spec, modalities, importance=about["memory"] == "fading"
    )
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for name, (dtype, shape) in about["arrays"].items()
    }
    streams = about["memory"] is not None
    known = (None, None)
    if streams:
        known = jax.eval_shape(lambda: initial_plan(params.weights, prefill_config))
    tree = _structure(shapes, *known)
    expected = _named(jax.eval_shape(_plain, tree))
    wrong = sorted(n for n in expected | shapes if expected.get(n) != shapes.get(n))
    if wrong:
        raise ValueError(
            f"{folder}: holds other arrays than this version of omnizip_jax has: {', '.join(wrong)}"
        )
    cache, state, trace = _load(folder / ARRAYS, tree, jax.tree.leaves(params.weights)[0])
    return Context(
        cache=cache,
        state=state,
        trace=trace if streams else jax.tree.map(np.asarray, trace),
        prefill_config=prefill_config,
        retention=RetentionPolicy(
            about["system"], mark, about["memory"], about["low_water"], about["text_slots"]
        ),
        used_slots=about["used_slots"],
        used_positions=about["used_positions"],
    )


def _folder(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be that of a folder, got {path!r}")
    return Path(path).expanduser().resolve()


def _read(folder: Path) -> dict[str, Any]:
    """What is static, once every file was found to be as it was written."""
    missing = [name for name in (ABOUT, ARRAYS, CHECKSUMS) if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{folder}: not a saved context, without {', '.join(missing)}; omnizip_jax.save writes "
            "one"
        )
    problems = damaged_files(folder)
    if problems:
        raise ValueError(f"{folder}: damaged, read and save it again\n  " + "\n  ".join(problems))
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["layout"] != LAYOUT:
        raise ValueError(
            f"{folder}: saved in layout {about['layout']}, this version of omnizip_jax has "
            f"{LAYOUT}: read and save it again"
        )
    return about


def _config_digest(config: Config) -> str:
    return digest([repr(config)])


def _described(method: Method) -> dict[str, Any]:
    """A method by its name and settings, which may be methods themselves.

    Raises:
        ValueError: it could not be made again from that.
    """
    name = next((name for name, kind in METHODS.items() if kind is type(method)), None)
    if name is None:
        raise ValueError(
            f"{type(method).__name__} has no name in omnizip_jax.METHODS, by which it could be "
            f'found again: METHODS["..."] = {type(method).__name__}, here and before restoring'
        )
    settings = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        value = value.item() if isinstance(value, np.generic) else value
        settings[field.name] = _described(value) if isinstance(value, Method) else value
    found = {"name": name, "settings": settings}
    if _made(json.loads(json.dumps(found, default=repr))) != method:
        raise ValueError(
            f"{method} cannot be saved: its settings should be numbers, texts and methods"
        )
    return found


def _method(described: dict[str, Any], folder: Path) -> Method:
    try:
        return _made(described)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: was read with a method that omnizip_jax.METHODS does not have, or not with "
            f"these settings: {described}"
        ) from error


def _made(described: dict[str, Any]) -> Method:
    settings = {
        name: _made(value) if isinstance(value, dict) else value
        for name, value in described["settings"].items()
    }
    return METHODS[described["name"]](**settings)


def _arrays(context: Context) -> dict[str, np.ndarray]:
    """Cache, past and trace by name, on the host."""
    plain = _named(_plain((context.cache, context.state, context.trace)))
    return {name: np.asarray(x) for name, x in jax.device_get(plain).items()}


def _named(tree: tuple[Any, Any, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(dict(zip(PARTS, tree, strict=True)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _plain(tree: Any) -> Any:
    """Random keys as the numbers that they are."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _structure(
    shapes: Shapes, plan: Any, expected: Any
) -> tuple[Cache, StreamState, Selection | None]:
    """The trees that the arrays belong to; how large caches and clips are, the arrays say."""
    places = dict.fromkeys(name.rpartition(".")[0] for name in shapes if name.startswith("cache."))
    segments = [_of(KVCache, shapes, place) for place in places]
    slots = segments[-1].keys.shape[1]
    state = jax.eval_shape(lambda: StreamState.initial(slots, jax.random.key(0)))
    trace = _of(Selection, shapes, "trace") if any(n.startswith("trace.") for n in shapes) else None
    cache = segments[0] if list(places) == ["cache"] else tuple(segments)
    return cache, state.replace(plan=plan, expected=expected), trace


def _of(kind: Any, shapes: Shapes, place: str) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: shapes.get(f"{place}.{name}") for name in names})


def _load(path: Path, tree: Any, like: jax.Array) -> Any:
    """The arrays in their places, beside the weights."""
    placed = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding)
        for name, x in _named(jax.eval_shape(_plain, tree)).items()
    }
    arrays = ocp.load(str(path), placed)
    leaves, structure = jax.tree.flatten(tree)
    found = [arrays[name] for name in _named(tree)]
    keyed = [
        jax.random.wrap_key_data(x) if _is_key(leaf) else x
        for x, leaf in zip(found, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, keyed)
