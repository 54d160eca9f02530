"""The check of array annotations that the tests put on every function of the package.

``jaxtyping``'s import hook decorates functions and dataclasses; this is the type checker that it is
given. It lets beartype look at the annotations that name an array, and at no others:

* Other types are pyright's. Public functions answer a wrong one with a ``ValueError`` of their own,
  which tests provoke.
* The fields of pytrees are documentation. Transformations put tracers, abstract shapes, None and
  more axes in them, and on the host they hold numpy. Functions say what they take out of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jax
from beartype import beartype
from flax import struct
from jaxtyping import AbstractArray


def arrays(function: Callable) -> Callable:
    """Check the array annotations of a function, shapes included."""
    hints = function.__annotations__
    if not any(map(_names_array, hints.values())):
        return function
    function.__annotations__ = {
        name: hint if _names_array(hint) else Any for name, hint in hints.items()
    }
    checked = beartype(function)
    return _unless_pytree(checked) if function.__name__ == "__init__" else checked


def _names_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray | jax.Array):
        return True
    return any(map(_names_array, get_args(hint)))


def _unless_pytree(init: Callable) -> Callable:
    @functools.wraps(init)
    def check(self: Any, *values: Any, **fields: Any) -> None:
        if not isinstance(self, struct.PyTreeNode):
            init(self, *values, **fields)

    return check
