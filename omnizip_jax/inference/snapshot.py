"""Contexts on disk.

A saved context is a folder::

    context.json   static data: configuration and fingerprint of the weights, method, window shape,
                   system prompt, and the names, types and shapes of the arrays
    arrays/        Orbax: cache, state and trace
    checksums      CRC-32 of every file above; written last
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from omnizip_jax.checkpoint.atomic_directory import atomic_directory
from omnizip_jax.checkpoint.checksums import CHECKSUMS, damaged_files, write_checksums
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.chat_template import Modalities
from omnizip_jax.inference.context import (
    Context,
    PrefillConfig,
    RetentionPolicy,
    StreamState,
    check_usable,
)
from omnizip_jax.inference.kv_cache_capacity import refresh_usage
from omnizip_jax.inference.streaming import initial_plan
from omnizip_jax.models.backend import Backend, jax_defaults
from omnizip_jax.models.decoder import CACHE_AXES, KVCache
from omnizip_jax.models.loaded_model import Params, check_params, weights_fingerprint
from omnizip_jax.models.quantized import QuantizedArray
from omnizip_jax.types import Selection
from omnizip_jax.window_spec import WindowSpec

LAYOUT = 6  # version of the folder and of the arrays of a context
ABOUT, ARRAYS = "context.json", "arrays"


@jax_defaults()
def save(context: Context, path: str | os.PathLike[str]) -> None:
    """Write a context, of clips or of a stream, to a folder; the context is unchanged.

    The folder gets its name when all files are written.

    Raises:
        ValueError: the folder exists or cannot be made; a donated context, or one that lost
            tokens; a method without a name in ``METHODS``.
    """
    check_usable(context)
    context = refresh_usage(context)
    prefill_config, retention = context.prefill_config, context.retention
    target = _folder(path)
    if target.exists():
        raise ValueError(f"{target}: exists already; choose another folder or remove it")
    key_data = context.state.replace(key=jax.random.key_data(context.state.key))
    tree = {"cache": context.cache, "state": key_data, "trace": context.trace}
    arrays = {name: np.asarray(x) for name, x in jax.device_get(_by_name(tree)).items()}
    about = {
        "layout": LAYOUT,
        "jax": jax.__version__,
        "weights": retention.fingerprint,
        "config": dataclasses.asdict(prefill_config.config),
        "method": _described(prefill_config.method),
        "spec": dataclasses.asdict(prefill_config.spec),
        "modalities": dataclasses.asdict(prefill_config.modalities),
        "cache_dtype": prefill_config.cache_dtype.name,
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


@jax_defaults()
def restore(params: Params, path: str | os.PathLike[str]) -> Context:
    """Load a context that ``save`` wrote; ``ask`` and ``feed`` continue with the same bits.

    Args:
        params: the weights that wrote the cache.

    Raises:
        ValueError: other weights; a folder that is not a saved context, is damaged, or was written
            by another version of this library. Nothing is allocated in these cases.
    """
    check_params(params)
    folder = _folder(path)
    about = _read(folder)
    ours = _fields(json.loads(json.dumps(dataclasses.asdict(params.config))))
    theirs, fingerprint = _fields(about["config"]), weights_fingerprint(params)
    differences = [
        f"{name} {theirs.get(name)!r} instead of {ours.get(name)!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if about["weights"] != fingerprint:
        differences.append(f"weights {about['weights']} instead of {fingerprint}")
    if differences:
        raise ValueError(
            f"{folder}: was saved with another model: load the one that it was saved with, which "
            f"has {', '.join(differences)}"
        )
    try:
        method = _made(about["method"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: was saved with a method that omnizip_jax.METHODS does not have, or "
            f"not with these settings: {about['method']}"
        ) from error
    spec, modalities = WindowSpec(**about["spec"]), Modalities(**about["modalities"])
    backend, importance = Backend.of(params.weights), about["memory"] == "fading"
    dtypes = params.dtype, jnp.dtype(about["cache_dtype"])
    prefill_config = PrefillConfig(
        params.config, method, spec, modalities, *dtypes, backend, importance
    )
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for name, (dtype, shape) in about["arrays"].items()
    }
    streams = about["memory"] is not None
    tree = _abstract(shapes, params, prefill_config if streams else None)
    expected = _by_name(tree)
    wrong = sorted(n for n in expected | shapes if expected.get(n) != shapes.get(n))
    if wrong:
        raise ValueError(
            f"{folder}: holds other arrays than this version of omnizip_jax has: {', '.join(wrong)}"
        )
    cache = re.compile(r"cache\.(keys|values)\b")
    placed = {
        name: x.update(sharding=params.sharding(CACHE_AXES if cache.match(name) else ()))
        for name, x in shapes.items()
    }
    arrays = ocp.load(str(folder / ARRAYS), placed)
    loaded = jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in expected])
    state, trace = loaded["state"], loaded["trace"]
    return Context(
        cache=loaded["cache"],
        state=state.replace(key=jax.random.wrap_key_data(state.key)),
        trace=trace if streams else jax.tree.map(np.asarray, trace),
        prefill_config=prefill_config,
        retention=RetentionPolicy(
            about["system"], fingerprint, about["memory"], about["low_water"], about["text_slots"]
        ),
        used_slots=about["used_slots"],
        used_positions=about["used_positions"],
    )


def _folder(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be that of a folder, got {path!r}")
    return Path(path).expanduser().resolve()


def _read(folder: Path) -> dict[str, Any]:
    """The static data, after every file has been compared with its checksum."""
    missing = [name for name in (ABOUT, ARRAYS, CHECKSUMS) if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{folder}: not a saved context, without {', '.join(missing)}; omnizip_jax.save writes "
            "one"
        )
    problems = damaged_files(folder)
    if problems:
        raise ValueError(f"{folder}: damaged, save the context again\n  " + "\n  ".join(problems))
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["layout"] != LAYOUT:
        raise ValueError(
            f"{folder}: saved in layout {about['layout']}, this version of omnizip_jax has "
            f"{LAYOUT}: save the context again"
        )
    return about


def _fields(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of a nested configuration by their path."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        flat |= _fields(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _described(method: Method) -> dict[str, Any]:
    """A method by its name and settings, which may be methods themselves.

    Raises:
        ValueError: a method that cannot be rebuilt from them.
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


def _made(described: dict[str, Any]) -> Method:
    settings = {
        name: _made(value) if isinstance(value, dict) else value
        for name, value in described["settings"].items()
    }
    return METHODS[described["name"]](**settings)


def _by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _abstract(
    shapes: dict[str, jax.ShapeDtypeStruct], params: Params, stream: PrefillConfig | None
) -> dict[str, Any]:
    """Shapes of the arrays of a context; the sizes of its cache and trace are those of the file.

    Args:
        stream: the settings of a stream, None for whole clips.
    """

    def of(kind: Any, name: str) -> Any:
        fields = [field.name for field in dataclasses.fields(kind)]
        return kind(**{field: shapes.get(f"{name}.{field}") for field in fields})

    cache = of(KVCache, "cache")
    if "cache.keys.values" in shapes:
        parts = {name: of(QuantizedArray, f"cache.{name}") for name in ("keys", "values")}
        cache = cache.replace(**parts)
    slots = 0 if cache.keys is None else cache.keys.shape[1]

    def initial() -> StreamState:
        plan = (None, None) if stream is None else initial_plan(params.weights, stream)
        state = StreamState.initial(slots, jax.random.key(0), *plan)
        return state.replace(key=jax.random.key_data(state.key))

    has_trace = any(name.startswith("trace.") for name in shapes)
    trace = of(Selection, "trace") if has_trace else None
    return {"cache": cache, "state": jax.eval_shape(initial), "trace": trace}
