"""Model families by the ``model_type`` of their released configuration.

A family is a package that exports the interface listed in docs/methods.md. Adding one takes a
folder and a line here.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from omnizip_jax.models import qwen2_5_omni, qwen3_omni
from omnizip_jax.models.config import BaseModelConfig, ConfigSection, Entry, read_json

Config: TypeAlias = BaseModelConfig

FAMILIES: dict[str, ModuleType] = {"qwen2_5_omni": qwen2_5_omni, "qwen3_omni_moe": qwen3_omni}
_BY_CONFIG = {module.ModelConfig: module for module in FAMILIES.values()}


def family(config: Config) -> ModuleType:
    """The family to which a configuration belongs."""
    return _BY_CONFIG[type(config)]


def read_config(path: str | Path) -> Config:
    """Read a released ``config.json`` of the whole model or of the thinker alone.

    Raises:
        ValueError: not a model of these families, or an entry is missing or invalid; names file,
            entry, expected and received.
    """
    try:
        values = read_json(Path(path))
        return _family_of(values).ModelConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: not a valid configuration: {error}") from error


def _family_of(values: Any) -> ModuleType:
    """The family that the ``model_type`` of a parsed ``config.json`` names."""
    names = [name + part for name in FAMILIES for part in ("", "_thinker")]
    entry = Entry("model_type", " or ".join(names), lambda value: value in names)
    return FAMILIES[ConfigSection(values).get(entry).removesuffix("_thinker")]
