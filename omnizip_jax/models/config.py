"""Decoder sizes, and the reader of a released ``config.json``; common to all model families.

The reader is own code: a library words a missing entry, a wrong type and a value out of range in
three ways, so stating path, expected range and received value takes as many lines.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

MAX_LAYERS = 2**10  # names and shapes are listed layer by layer
MAX_COUNT = 2**24  # of any other number

Sizes = TypeVar("Sizes")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises ``ValueError`` if it cannot be read or parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not a readable JSON file ({error})") from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """Name of an entry in the file, and its valid values."""

    name: str
    expected: str
    valid: Callable[[Any], bool]


def integer(name: str, maximum: int = MAX_COUNT, minimum: int = 1) -> Entry:
    """An integer from ``minimum`` to ``maximum``."""
    expected = f"an integer from {minimum} to {maximum}"
    return Entry(name, expected, lambda value: _is_integer(value, minimum, maximum))


def integers(name: str, maximum: int) -> Entry:
    """A list of integers from 0 to ``maximum``."""

    def valid(values: Any) -> bool:
        return isinstance(values, list) and all(_is_integer(value, 0, maximum) for value in values)

    return Entry(name, f"a list of integers from 0 to {maximum}", valid)


def positive(name: str) -> Entry:
    """A finite number above zero."""

    def valid(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 < value < math.inf

    return Entry(name, "a positive number", valid)


class ConfigSection:
    """One mapping of a parsed configuration, at a path such as ``thinker_config.text_config``.

    Raises:
        ValueError: ``values`` is not a mapping. The methods: an entry is missing or invalid; states
            path, expected and received value.
    """

    def __init__(self, values: Any, path: str = ""):
        if not isinstance(values, dict):
            raise ValueError(f"{path or 'the file'}: expected a mapping, got {_short(values)}")
        self.values, self.path = values, path

    def section(self, name: str) -> ConfigSection:
        """A nested mapping."""
        values = self.get(Entry(name, "a mapping", lambda value: isinstance(value, dict)))
        return ConfigSection(values, self._path_of(name))

    def get(self, entry: Entry) -> Any:
        """The value of an entry; a list as a tuple."""
        self.check(entry.name in self.values, entry.name, entry.expected)
        value = self.values[entry.name]
        self.check(entry.valid(value), entry.name, entry.expected)
        return tuple(value) if isinstance(value, list) else value

    def read(self, sizes: type[Sizes], **values: Any) -> Sizes:
        """Build a dataclass: ``values``, and an entry for each field annotated with one."""
        for name, hint in typing.get_type_hints(sizes, include_extras=True).items():
            for entry in getattr(hint, "__metadata__", ()):
                values[name] = self.get(entry)
        return sizes(**values)

    def check_fixed(self, name: str, *implemented: Any) -> None:
        """Check that an entry is missing or has one of the implemented values."""
        if name in self.values:
            expected = " or ".join(map(_short, implemented))
            valid = any(self.values[name] == value for value in implemented)
            self.check(valid, name, f"{expected} (no other value is implemented)")

    def check(self, valid: bool, name: str, expected: str) -> None:
        """Raise ``ValueError`` about an entry unless it is valid."""
        if not valid:
            got = _short(self.values[name]) if name in self.values else "nothing"
            raise ValueError(f"{self._path_of(name)}: expected {expected}, got {got}")

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _is_integer(value: Any, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _short(value: Any) -> str:
    return reprlib.repr(value)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder (``thinker_config.text_config``)."""

    vocabulary: Annotated[int, integer("vocab_size")]
    layers: Annotated[int, integer("num_hidden_layers", MAX_LAYERS)]
    hidden: Annotated[int, integer("hidden_size")]
    heads: Annotated[int, integer("num_attention_heads")]
    kv_heads: Annotated[int, integer("num_key_value_heads")]
    ffn: Annotated[int, integer("intermediate_size")]
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies of time, height and width
    rms_eps: Annotated[float, positive("rms_norm_eps")]
    max_positions: Annotated[int, integer("max_position_embeddings")]
    tied: bool  # lm_head shares the embedding table
    head_dim: int = 0  # 0: hidden / heads
    attention_bias: bool = True  # of the queries, keys and values
    qk_norm: bool = False  # RMSNorm of each head of the queries and keys
    mrope_interleaved: bool = False  # the axes of position alternate between frequencies
    experts: int = 0  # 0: one feed-forward network of width `ffn`
    experts_per_token: int = 0
    expert_ffn: int = 0
    deepstack_layers: int = 0  # first layers, after which features of video tokens are added

    def __post_init__(self):
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
