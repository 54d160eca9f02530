"""The entries of a ``config.json``, checked as they are read, whatever the family."""

from __future__ import annotations

import math
import reprlib
from typing import Any

LAYERS = 2**10  # no network has more; names and shapes are listed layer by layer
MOST = 2**24  # nor anything else that is counted


class ConfigSection:
    """One part of a parsed configuration. Every error names the entry as it stands in the file.

    Args:
        values: the parsed JSON of this part.
        name: where it stands, for example ``thinker_config.text_config``.

    Raises:
        ValueError: ``values`` is no mapping; by the methods: an entry is missing or unfit.
    """

    def __init__(self, values: Any, name: str = ""):
        if not isinstance(values, dict):
            raise ValueError(f"{name or 'the file'}: expected a mapping, got {_short(values)}")
        self.values, self.name = values, name

    def part(self, name: str) -> ConfigSection:
        """A nested mapping."""
        return ConfigSection(self._get(name, "a mapping"), self._path(name))

    def count(self, name: str, most: int = MOST) -> int:
        """An integer from 1 to ``most``."""
        return self._integer(name, 1, most)

    def index(self, name: str, size: int) -> int:
        """An integer from 0 to below ``size``."""
        return self._integer(name, 0, size - 1)

    def indices(self, name: str, size: int) -> tuple[int, ...]:
        """A list of integers from 0 to below ``size``."""
        expected = f"a list of integers from 0 to {size - 1}"
        values = self._get(name, expected)
        fits = isinstance(values, list) and all(_is_integer(value, 0, size - 1) for value in values)
        self.check(fits, name, expected)
        return tuple(values)

    def positive(self, name: str) -> float:
        """A finite number above zero."""
        value = self._get(name, "a positive number")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        self.check(number and 0 < value < math.inf, name, "a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where it is missing."""
        value = self.values.get(name, False)
        self.check(isinstance(value, bool), name, "true or false")
        return value

    def fixed(self, name: str, *expected: Any) -> None:
        """An entry that may be missing, and else has one of the values that are implemented."""
        if name in self.values:
            fits = any(self.values[name] == value for value in expected)
            self.check(fits, name, f"{' or '.join(map(_short, expected))} (nothing else is built)")

    def check(self, fits: bool, name: str, expected: str) -> None:
        """Raise ``ValueError`` about an entry unless it fits."""
        if not fits:
            got = _short(self.values[name]) if name in self.values else "nothing"
            raise ValueError(f"{self._path(name)}: expected {expected}, got {got}")

    def _get(self, name: str, expected: str) -> Any:
        self.check(name in self.values, name, expected)
        return self.values[name]

    def _integer(self, name: str, least: int, most: int) -> int:
        expected = f"an integer from {least} to {most}"
        value = self._get(name, expected)
        self.check(_is_integer(value, least, most), name, expected)
        return value

    def _path(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _short(value: Any) -> str:
    return reprlib.repr(value)
