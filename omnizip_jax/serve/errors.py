"""Errors as clients receive them."""

from __future__ import annotations

import logging
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


def as_request_error(error: Exception) -> RequestError:
    """Convert an error for the client: invalid input keeps its message, a bug is logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(str(error))
    _LOG.error("internal error", exc_info=error)
    return RequestError("internal error; the server's log has the details", 500)
