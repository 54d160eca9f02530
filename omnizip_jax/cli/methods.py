"""Methods on the command line: by name, with settings as ``key=value``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from omnizip_jax.compression import METHODS, Method

LAYERS = 28  # of the decoders that the settings were published for


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


def parse_methods(names: str, settings: Sequence[str] = ()) -> dict[str, Method]:
    """Methods of names with commas between them, by name.

    Args:
        settings: as for ``parse_method``; each goes to the methods that have it. A share to keep
            leaves ``all``, which keeps everything, as it is.

    Raises:
        ValueError: as ``parse_method``; a setting that none of them has; a name given twice.
    """
    kinds = {name.strip(): METHODS.get(name.strip()) for name in names.split(",")}
    if len(kinds) != len(names.split(",")):
        raise ValueError(f"--methods {names}: name each method once, with commas between")
    fields = {
        name: {field.name for field in dataclasses.fields(kind)} if kind else set()
        for name, kind in kinds.items()
    }
    asked: dict[str, list[str]] = {name: [] for name in kinds}
    for setting in settings:
        key = setting.partition("=")[0].strip().replace("-", "_")
        having = [name for name in kinds if key in fields[name]]
        having = [name for name in having if (key, name) != ("keep", "all")]
        for name in having or list(kinds)[:1]:  # the one that has it not says what it has
            asked[name].append(setting)
    return {name: parse_method(name, asked[name]) for name in kinds}


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def print_methods(console: Console) -> None:
    """Every method in a line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "streams", "in decoder", "keeps"):
        table.add_column(heading)
    for name, kind in METHODS.items():
        method = kind()
        yes = ("yes" if each else "" for each in (method.streams, method.stages(LAYERS)))
        table.add_row(name, *yes, _summary(kind))
    console.print(table)
    console.print("One with its settings: omnizip methods NAME", highlight=False)


def print_method(name: str, console: Console) -> None:
    """What one method does, and its settings with their defaults.

    Raises:
        ValueError: an unknown method.
    """
    kind = type(parse_method(name, ()))
    console.print(inspect.getdoc(kind), markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("setting", "default"):
        table.add_column(heading)
    for field in dataclasses.fields(kind):
        table.add_row(field.name, str(field.default))
    console.print(table)


def _summary(kind: type[Method]) -> str:
    """The first clause of what a method says about itself."""
    first = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return first.replace("``", "").partition(";")[0].rstrip(".")
