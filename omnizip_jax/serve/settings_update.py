"""Another method for a session that goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from omnizip_jax.compression import Method
from omnizip_jax.inference.streaming import change_method
from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.session import Session


@dataclasses.dataclass(frozen=True)
class Changed:
    """The session reads with its new method.

    Attributes:
        number: of the first window that it reads so.
    """

    number: int


def changed(engine: Engine, session: Session, arrived: int, method: Method) -> Iterator[Changed]:
    """The one step of a change of method; what was read stays as it was read.

    Submit it as ``first``, or windows that come later may still be read by the method before.

    Args:
        arrived: windows before this number are read by the method before.
    """
    engine.read_due(session, arrived)
    context = change_method(engine.params, engine.context_of(session), method)
    engine.go_on(session, context)
    yield Changed(arrived)
