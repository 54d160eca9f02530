"""Run-time check of array annotations, for ``jaxtyping``'s import hook.

The hook decorates functions and dataclasses of the package; this is its type checker. It passes to
beartype the annotations that name an array, and no others:

* Other types are checked by pyright. Public functions answer a wrong type with their own
  ``ValueError``, which tests provoke.
* ``Array`` accepts numpy arrays too, as jax does; ``np.ndarray`` is for host arrays only. A numpy
  scalar passes for an array without axes.
* Fields of pytrees are not checked. Transformations store tracers, abstract shapes, None and
  batched arrays in them, and on the host they hold numpy arrays.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
from beartype import beartype
from flax import struct
from jaxtyping import AbstractArray

OF_HOST = np.ndarray | np.generic


def arrays(function: Callable) -> Callable:
    """Check the array annotations of a function, shapes included."""
    hints = function.__annotations__
    if not any(map(_names_array, hints.values())):
        return function
    function.__annotations__ = {
        name: _with_numpy(hint) if _names_array(hint) else Any for name, hint in hints.items()
    }
    checked = beartype(function)
    return _unless_pytree(checked) if function.__name__ == "__init__" else checked


def _names_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray | jax.Array):
        return True
    return any(map(_names_array, get_args(hint)))


def _with_numpy(hint: Any) -> Any:
    if hint is jax.Array:
        return jax.Array | OF_HOST
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        kinds = OF_HOST if hint.array_type is np.ndarray else jax.Array | OF_HOST
        return hint.dtype[kinds, hint.dim_str]
    origin, parts = get_origin(hint), tuple(map(_with_numpy, get_args(hint)))
    if origin in (Union, UnionType):
        return Union[parts]  # noqa: UP007
    return tuple[parts] if origin is tuple else hint


def _unless_pytree(init: Callable) -> Callable:
    @functools.wraps(init)
    def check(self: Any, *values: Any, **fields: Any) -> None:
        if not isinstance(self, struct.PyTreeNode):
            init(self, *values, **fields)

    return check
