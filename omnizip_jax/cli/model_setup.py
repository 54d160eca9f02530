"""Checkpoint, window shape and compression methods of a command line, and ``omnizip convert``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any

import jax

from omnizip_jax.checkpoint import convert
from omnizip_jax.checkpoint.load import load
from omnizip_jax.checkpoint.small_model import cache_folder
from omnizip_jax.compression import METHODS, Method
from omnizip_jax.models.loaded_model import Params
from omnizip_jax.window_spec import WindowSpec


def load_checkpoint(
    path: str,
    dtype: str | None = None,
    devices: int | None = None,
    cache_dtype: str | None = None,
    notice: bool = True,
) -> Params:
    """Load a checkpoint, and keep compiled programs in the user's cache folder from now on.

    Args:
        notice: announce it on stderr if it is a terminal.
    """
    enable_compilation_cache()
    if notice and sys.stderr.isatty():
        print(f"[loading {path}]", file=sys.stderr)
    return load(path, dtype=dtype, mesh=devices, cache_dtype=cache_dtype)


def run_convert(arguments: argparse.Namespace) -> None:
    """Convert a released checkpoint, and print what was written and what was left out."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
    report = convert.convert(
        arguments.released,
        arguments.target,
        arguments.stored_dtype,
        quantize_all=arguments.quantize_all,
    )
    print(report)


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def window_spec(arguments: argparse.Namespace, spec: WindowSpec) -> WindowSpec:
    """The checkpoint's window shape, with the grid of ``--grid-slots``."""
    if arguments.grid_slots is None:
        return spec
    return dataclasses.replace(spec, grid_slots=arguments.grid_slots)


def parse_method(name: str, settings: Sequence[str]) -> Method:
    """The named method, with some of its settings changed.

    Args:
        settings: each ``key=value``; values are Python literals, text without quotes.

    Raises:
        ValueError: an unknown method or setting, or a value that the method refuses.
    """
    if name not in METHODS:
        raise ValueError(f"--method {name}: unknown; take one of {', '.join(METHODS)}")
    known = _settings_of(name)
    values: dict[str, Any] = {}
    for setting in settings:
        key, text = _split(setting)
        if text is None or key not in known:
            raise ValueError(
                f"--set {setting}: {name} has the settings {', '.join(known) or '(none)'}, each "
                "written key=value"
            )
        values[key] = _parse_value(text)
    return METHODS[name](**values)


def parse_methods(names: str, settings: Sequence[str] = ()) -> dict[str, Method]:
    """Methods by name, from names separated by commas.

    Args:
        settings: as for ``parse_method``; each is applied to the methods that have it. ``keep`` is
            not applied to ``all``, which keeps everything.

    Raises:
        ValueError: as ``parse_method``; a setting that none of them has; a repeated name.
    """
    fields = {
        name: _settings_of(name) if name in METHODS else []
        for name in (name.strip() for name in names.split(","))
    }
    if len(fields) != len(names.split(",")):
        raise ValueError(f"--methods {names}: name each method once, with commas between")
    chosen: dict[str, list[str]] = {name: [] for name in fields}
    for setting in settings:
        key, _ = _split(setting)
        # A method without `keep` cannot be compared at a share, except the one that keeps all.
        having = [n for n in fields if key in fields[n] or (key == "keep" and n != "all")]
        for name in having or list(fields)[:1]:  # the error of the first one lists its settings
            chosen[name].append(setting)
    return {name: parse_method(name, chosen[name]) for name in fields}


def _settings_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(METHODS[name])]


def _split(setting: str) -> tuple[str, str | None]:
    key, equals, text = setting.partition("=")
    return key.strip().replace("-", "_"), text.strip() if equals else None


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text
