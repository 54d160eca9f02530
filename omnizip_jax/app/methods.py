"""Methods on the command line: by name, with settings as ``key=value``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from omnizip_jax.compression import METHODS, Method


def parse_method(name: str, settings: Sequence[str]) -> Method:
    """The method of a name, with some of its settings changed.

    Args:
        settings: each ``key=value``; values are written as in Python, text without quotes.

    Raises:
        ValueError: an unknown method or setting, or a value that the method refuses.
    """
    if name not in METHODS:
        raise ValueError(f"--method {name}: unknown; take one of {', '.join(METHODS)}")
    kind = METHODS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in known:
            raise ValueError(
                f"--set {setting}: {name} has the settings {', '.join(known) or '(none)'}, each "
                "written key=value"
            )
        values[key] = _value(text.strip())
    return kind(**values)


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def print_methods() -> None:
    """Every method in a line, and its settings with their defaults."""
    table = Table(show_lines=True)
    for heading in ("method", "what it does", "settings", "streams"):
        table.add_column(heading)
    for name, kind in METHODS.items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        settings = "\n".join(f"{f.name}={f.default}" for f in dataclasses.fields(kind))
        table.add_row(name, first, settings, "yes" if kind().streams else "no")
    Console().print(table)
