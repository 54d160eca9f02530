"""The check of array annotations that the tests put on every function of the package.

``jaxtyping``'s import hook decorates functions and dataclasses; this is the type checker that it is
given. It lets beartype look at the annotations that name an array, and at no others:

* Other types are pyright's. Public functions answer a wrong one with a ``ValueError`` of their own,
  which tests provoke.
* ``Array`` takes numpy too, as all of jax does; ``np.ndarray`` is of the host alone. What numpy
  makes of an array without axes, a scalar, passes for one.
* The fields of pytrees are documentation. Transformations put tracers, abstract shapes, None and
  more axes in them, and on the host they hold numpy. Functions say what they take out of them.
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
