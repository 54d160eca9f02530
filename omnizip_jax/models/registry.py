"""Model families by the ``model_type`` of their released configuration.

A family is a package that exports the interface listed in docs/methods.md. Adding one takes a
folder and a line here.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeAlias

from omnizip_jax.models import qwen2_5_omni, qwen3_omni

Config: TypeAlias = qwen2_5_omni.ModelConfig | qwen3_omni.ModelConfig

FAMILIES: dict[str, ModuleType] = {"qwen2_5_omni": qwen2_5_omni, "qwen3_omni_moe": qwen3_omni}
_BY_CONFIG = {module.ModelConfig: module for module in FAMILIES.values()}


def family(config: Config) -> ModuleType:
    """The family to which a configuration belongs."""
    return _BY_CONFIG[type(config)]
