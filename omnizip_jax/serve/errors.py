"""Errors as clients receive them."""

from __future__ import annotations

import contextlib
import dis
import logging
from collections.abc import Iterator
from typing import Any

_LOG = logging.getLogger("omnizip.serve")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "internal_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request that cannot be served; clients receive the message.

    Args:
        message: what was expected, what was received, what to do.
        status: HTTP status.
        param: the field of the request that is at fault.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None):
        # A quoted value may hold lone surrogates, which cannot be encoded.
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.status, self.param = status, param

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, in OpenAI's format."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.status,
            }
        }


@contextlib.contextmanager
def invalid_input(param: str | None = None) -> Iterator[None]:
    """Convert a ``ValueError`` about a client's input to a ``RequestError``.

    It surrounds library calls whose arguments a client chose. Only an error that a ``raise``
    statement of this package raised is about the input; one of numpy, jax or Python is a bug.
    """
    try:
        yield
    except ValueError as error:
        if not _is_raised_here(error):
            raise
        raise RequestError(str(error), param=param) from error


def _is_raised_here(error: ValueError) -> bool:
    """Whether a ``raise`` statement of this package raised the error."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    is_own = module.partition(".")[0] == __name__.partition(".")[0]
    return is_own and instruction == dis.opmap["RAISE_VARARGS"]


def as_request_error(error: BaseException) -> RequestError:
    """Convert an error for the client; all but a ``RequestError`` are bugs, which are logged."""
    if isinstance(error, RequestError):
        return error
    _LOG.error("internal error", exc_info=error)
    return RequestError("internal error; the server's log has the details", 500)
