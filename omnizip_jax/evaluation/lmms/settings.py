"""What lmms-eval hands over as ``key=value``, for the model and for each request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omnizip_jax.compression import METHODS, Method
from omnizip_jax.inference.decode import SamplingParams

MAX_NEW_TOKENS = 256  # of tasks that do not say


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of a name.

    Raises:
        ValueError: an unknown method or setting, or a value that it refuses.
    """
    if name not in METHODS:
        raise ValueError(f"method={name}: unknown; take one of {', '.join(METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[name])]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: no argument of the model, and no setting of the method {name}, "
            f"which has {', '.join(known) or 'none'}"
        )
    return METHODS[name](**{key: _none(value) for key, value in settings.items()})


def decoding_of(settings: Mapping[str, Any], seed: int) -> SamplingParams:
    """How a task wants replies made: ``generation_kwargs``, as transformers understands them.

    Raises:
        ValueError: beam search, or a value without meaning.
    """
    if (settings.get("num_beams") or 1) != 1:
        raise ValueError(f"num_beams {settings['num_beams']}: there is no beam search here; take 1")
    temperature = settings.get("temperature") or 0.0
    return SamplingParams(
        max_new_tokens=settings.get("max_new_tokens") or MAX_NEW_TOKENS,
        temperature=temperature if settings.get("do_sample", True) else 0.0,
        top_p=settings.get("top_p") or 1.0,
        seed=seed,
    )


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value
